"""Runs tasks in worker processes that report their progress and can be stopped."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from wroformer_jax.errors import InputError

_POLL_SECONDS = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[float], object]


def run_tasks(
    task: Callable[[Item, Advance], Result],
    items: Sequence[Item],
    *,
    workers: int,
    finish: Callable[[Item, Result], object],
    advance: Advance,
) -> None:
    """Calls `finish(item, task(item, advance))` for all items, in any order.

    With one worker the tasks run in a thread of this process. With more they run in new processes ("spawn"), which end
    when this one does, and `finish` runs in threads of this process.

    The calling thread only waits, because it receives Ctrl-C: raised inside a callback of libsndfile, the interrupt
    would be lost, and the task would go on with a part of the data.

    Args:
      task: the function to run. It must be picklable, as must items and results. It reports progress often by calling
        its second argument, which raises an exception in a task that is to stop.
      items: the arguments of the tasks.
      workers: number of tasks that run at the same time.
      finish: called with every item and its result; may be slow.
      advance: called in this thread with the sum of the progress that the tasks have reported since the last call.

    Raises:
      InputError: a process was killed, as the system does when memory runs out, or could not start.
      Any exception of a task or of `finish`; the other tasks are then stopped.
    """
    if workers == 1 or len(items) <= 1:
        reported, stopped = _Sum(), threading.Event()
        report = functools.partial(_report, reported, stopped)
        _watch(lambda item: finish(item, task(item, report)), items, 1, reported, stopped, advance)
        return
    context = multiprocessing.get_context("spawn")
    reported, stopped = context.Value("d", 0.0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_begin, initargs=(reported, stopped)
    ) as processes:

        def do(item: Item) -> None:
            finish(item, processes.submit(_call, task, item).result())

        try:
            # More threads than processes, so that no process waits while `finish` runs.
            _watch(do, items, 2 * workers, reported, stopped, advance)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process ended early. If memory ran out, run the same command again with fewer workers, and "
                "it goes on; a program of your own must not repeat its work when a worker imports it "
                "(if __name__ == '__main__')"
            ) from error


def _watch(
    do: Callable[[Item], object], items: Sequence[Item], threads: int, reported: Any, stopped: Any, advance: Advance
) -> None:
    """Calls `do` for all items in threads, passes on reported progress, and stops all tasks at the first exception."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(do, item) for item in items]
        passed_on = 0.0
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, timeout=_POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
                )
                now = reported.value
                advance(now - passed_on)
                passed_on = now
                for future in done:
                    future.result()
        finally:
            stopped.set()
            for future in futures:
                future.cancel()


class _Sum:
    """A number with a lock, as `multiprocessing.Value` is for processes."""

    def __init__(self) -> None:
        self.value = 0.0
        self._lock = threading.Lock()

    def get_lock(self) -> threading.Lock:
        return self._lock


class _Stopped(Exception):
    """Raised in a task that is to stop."""


_report_to_parent: list[Advance] = []  # one function, in a worker process


def _begin(reported: Any, stopped: Any) -> None:
    """Initialises a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too, and stops the workers
    _report_to_parent.append(functools.partial(_report, reported, stopped))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only runs in workers
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _call(task: Callable[[Item, Advance], Result], item: Item) -> Result:
    (report,) = _report_to_parent
    report(0.0)
    return task(item, report)


def _report(reported: Any, stopped: Any, amount: float) -> None:
    if stopped.is_set():
        raise _Stopped
    with reported.get_lock():
        reported.value += amount
