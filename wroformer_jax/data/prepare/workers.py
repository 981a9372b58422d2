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

    With one worker the tasks run in a thread of this process. Else they run in processes of their own, which begin
    anew ("spawn") and end when this one does, and `finish` in threads of this one.

    Nothing runs in the calling thread: Ctrl-C is heard there, and would be lost in libsndfile's callbacks, which would
    go on with a part of the data.

    Args:
      task: what to do. It can be pickled, as its items and results, and tells of its progress often, for this is where
        it is stopped.
      items: all that there is to do.
      workers: how many tasks at a time.
      finish: told of every result; may be slow.
      advance: told in the calling thread of all that the tasks tell theirs.

    Raises:
      InputError: a process was killed, as the system does when memory runs out, or could not begin.
      And whatever a task or `finish` raises; the others are stopped then.
    """
    if workers == 1 or len(items) <= 1:
        told, stopped = _Sum(), threading.Event()
        tell = functools.partial(_tell, told, stopped)
        _watch(lambda item: finish(item, task(item, tell)), items, 1, told, stopped, advance)
        return
    context = multiprocessing.get_context("spawn")
    told, stopped = context.Value("d", 0.0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_begin, initargs=(told, stopped)
    ) as processes:

        def do(item: Item) -> None:
            finish(item, processes.submit(_call, task, item).result())

        try:
            # More threads than processes: while some finish, no process waits.
            _watch(do, items, 2 * workers, told, stopped, advance)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process ended early. If memory ran out, run the same command again with fewer workers, and "
                "it goes on; a program of your own must not do its work again when a worker imports it "
                "(if __name__ == '__main__')"
            ) from error


def _watch(
    do: Callable[[Item], None], items: Sequence[Item], threads: int, told: Any, stopped: Any, advance: Advance
) -> None:
    """Calls `do` for all items, passes on what is told meanwhile, and stops everything at the first exception."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(do, item) for item in items]
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
        finally:
            stopped.set()
            for future in futures:
                future.cancel()


class _Sum:
    """For threads what `multiprocessing.Value` is for processes."""

    def __init__(self) -> None:
        self.value = 0.0
        self._lock = threading.Lock()

    def get_lock(self) -> threading.Lock:
        return self._lock


class _Stopped(Exception):
    """Nobody waits for the result any more."""


_tell_parent: list[Advance] = []  # of a worker process


def _begin(told: Any, stopped: Any) -> None:
    """Makes this process a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and says when to stop
    _tell_parent.append(functools.partial(_tell, told, stopped))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker would wait for work for ever once its parent is killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _call(task: Callable[[Item, Advance], Result], item: Item) -> Result:
    (tell,) = _tell_parent
    tell(0.0)
    return task(item, tell)


def _tell(told: Any, stopped: Any, amount: float) -> None:
    if stopped.is_set():
        raise _Stopped
    with told.get_lock():
        told.value += amount
