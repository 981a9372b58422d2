"""Tasks in worker processes: results, progress and errors."""

import os
import signal

import pytest

from wroformer_jax.data.prepare.workers import run_tasks
from wroformer_jax.errors import InputError


def square(number, advance):
    advance(float(number))
    return number**2


def fail(number, advance):
    if number == 3:
        raise InputError("3 is no good")
    return number


def die(number, advance):
    os.kill(os.getpid(), signal.SIGKILL)


def run(task, items, workers, finish=lambda item, result: None):
    told = []
    run_tasks(task, items, workers=workers, finish=finish, advance=told.append)
    return sum(told)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_items_are_done_and_told(workers):
    results = {}
    assert run(square, range(10), workers, finish=results.__setitem__) == 45
    assert results == {number: number**2 for number in range(10)}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_is_raised(workers):
    with pytest.raises(InputError, match="3 is no good"):
        run(fail, range(10), workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_finishing_raises_is_raised(workers):
    def finish(item, result):
        raise InputError(f"{item} cannot be kept")

    with pytest.raises(InputError, match="cannot be kept"):
        run(square, range(10), workers, finish)


def test_a_worker_that_is_killed():
    with pytest.raises(InputError, match="a worker process ended early"):
        run(die, range(2), workers=2)


def test_nothing_to_do():
    assert run(die, [], workers=2) == 0
