"""Work for several processes, whose progress is heard and which can be stopped."""

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


def run(
    task: Callable[[Item, Advance], Result],
    items: Sequence[Item],
    *,
    workers: int,
    finish: Callable[[Item, Result], object],
    advance: Advance,
) -> None:
    """Does `finish(item, task(item, advance))` for all items, in no certain order.

    With one worker all of it happens in this process. Else tasks run in processes of their own, which begin anew
    ("spawn") and end when this one does, and `finish` in threads of this one.

    Args:
      task: what to do; can be pickled, as its items and results.
      items: all that there is to do.
      workers: processes at a time.
      finish: told of every result; may be slow.
      advance: told in this thread of all that the tasks tell their own.

    Raises:
      InputError: a process was killed, as the system does when memory runs out.
      And whatever a task or `finish` raises; the others are stopped then.
    """
    if workers == 1 or len(items) <= 1:
        for item in items:
            finish(item, task(item, advance))
        return
    context = multiprocessing.get_context("spawn")
    told, stopped = context.Value("d", 0.0), context.Event()
    with (
        concurrent.futures.ProcessPoolExecutor(
            min(workers, len(items)), mp_context=context, initializer=_begin, initargs=(told, stopped)
        ) as processes,
        # More threads than processes: while some finish, no process waits.
        concurrent.futures.ThreadPoolExecutor(2 * workers) as threads,
    ):

        def do(item: Item) -> None:
            finish(item, processes.submit(functools.partial(_call, task), item).result())

        futures = [threads.submit(do, item) for item in items]
        heard = 0.0
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, timeout=_POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
                )
                now = told.value
                advance(now - heard)
                heard = now
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, perhaps because memory ran out: run the same command again to go on, "
                "with fewer --workers"
            ) from error
        finally:
            stopped.set()
            for future in futures:
                future.cancel()


class _Stopped(Exception):
    """Nobody waits for the result any more."""


_shared: dict[str, Any] = {}  # of a worker process


def _begin(told: Any, stopped: Any) -> None:
    """Makes this process a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and says when to stop
    _shared.update(told=told, stopped=stopped)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker would wait for work for ever once its parent is killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _call(task: Callable[[Item, Advance], Result], item: Item) -> Result:
    _tell(0.0)
    return task(item, _tell)


def _tell(amount: float) -> None:
    if _shared["stopped"].is_set():
        raise _Stopped
    with _shared["told"].get_lock():
        _shared["told"].value += amount
