"""Loads batches of augmented crops of a prepared set: divided among processes, shuffled by a seed, resumed exactly.

A batch depends only on the set, the settings and its number, not on the number of workers or processes: example n of
the endless shuffled sequence is drawn from (seed, n), and batch b holds the examples b * batch_size to
(b + 1) * batch_size - 1. The number of the next batch is therefore the whole state. Each process reads and mixes only
its `Share`: some of the rows, and a span of samples of each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.config.checks import check_whole_number, flattened
from wroformer_jax.data.examples import Batch, Examples, Recipe
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.errors import InputError

_FREE_TO_CHANGE = ("workers", "prefetch")  # settings that change no batch
_SHARED_MEMORY = "/dev/shm"
_SECONDS_TO_FINISH = 5  # how long `close` waits for a batch that is being made


@dataclasses.dataclass(frozen=True)
class Loading:
    """The settings of the batches and of the processes that load them.

    Raises:
      InputError: a field has an impossible value.
    """

    crop_samples: int  # length of an example; a shorter song is followed by silence
    batch_size: int  # examples per batch, over all processes
    targets: tuple[str, ...]  # stems to estimate; "instrumental" is the sum of all stems except vocals
    stems: tuple[str, ...] = ()  # stems of the mixture; an empty tuple means all stems of the set
    channels: int = 2
    seed: int = 0  # below 2^32
    workers: int = 1  # processes that read and augment; with 0 a thread of this process does it
    prefetch: int = 2  # batches that each worker prepares ahead
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, minimum, maximum in _WHOLE_NUMBERS:
            check_whole_number(name, getattr(self, name), minimum=minimum, maximum=maximum)
        for name in ("targets", "stems"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(stem, str) for stem in value):
                raise InputError(f"{name} is {value!r}, expected a list of names")
            if len({stem.lower() for stem in value}) != len(value):
                raise InputError(f"{name} names a stem twice: {', '.join(value)}")
            object.__setattr__(self, name, tuple(value))
        if not self.targets:
            raise InputError("targets is empty, expected at least one name of a stem")

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
        return {**fields, **lists, "augmentation": self.augmentation.to_dict()}


_WHOLE_NUMBERS = (
    ("crop_samples", 1, math.inf),
    ("batch_size", 1, math.inf),
    ("channels", 1, 2),
    ("seed", 0, 2**32 - 1),
    ("workers", 0, math.inf),
    ("prefetch", 1, math.inf),
)


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that a process loads: some of the rows, and the same span of samples of each.

    Several processes may have the same rows with different spans, or the same rows and span.

    Raises:
      InputError: the rows do not ascend, or the span is empty.
    """

    rows: tuple[int, ...] | None = None  # numbers of the rows, from 0, ascending; None means all
    start: int = 0  # first sample of the span, from 0
    stop: int | None = None  # the sample after the span; None means the end of the example, after which it is silent

    def __post_init__(self) -> None:
        if self.rows is not None:
            for row in self.rows:
                check_whole_number("rows", row, minimum=0)
            if not self.rows or list(self.rows) != sorted(set(self.rows)):
                raise InputError(f"rows is {self.rows!r}, expected numbers that ascend, at least one")
        check_whole_number("start", self.start, minimum=0)
        if self.stop is not None:
            check_whole_number("stop", self.stop, minimum=self.start + 1)


_WHOLE = Share()


def batches(record_set: RecordSet, split: str, loading: Loading, share: Share = _WHOLE) -> Batches:
    """Returns an endless iterator over batches of a split of a prepared set, or over a share of each batch.

    Args:
      record_set: a prepared set.
      split: name of a split of the set.
      loading: the settings.
      share: the part of every batch that this process loads.

    Raises:
      InputError: the split, a stem or a target does not exist, the batch has no such rows, or a span without `stop`
        starts after the end of the examples.
    """
    if share.rows and share.rows[-1] >= loading.batch_size:
        raise InputError(f"rows has {share.rows[-1]}, expected numbers below batch_size, which is {loading.batch_size}")
    if share.stop is None and share.start >= loading.crop_samples:
        raise InputError(
            f"start is {share.start}, expected a number below crop_samples, which is {loading.crop_samples}, "
            "or a stop beyond it"
        )
    return Batches(record_set, split, loading, share)


class Batches:
    """An iterator over batches, which are dicts.

    A batch has "mixture" (batch, channel, sample) and "targets" (batch, target, channel, sample), with the rows and
    samples of the share. The arrays are float32, full scale 1; the mixture is the sum of its stems. Workers start with
    the first batch; `close` ends them, as does the end of this process, even if it is killed. Also a context manager.

    Attributes:
      seconds_waited: seconds spent waiting for batches so far, including the start of the workers.
    """

    def __init__(self, record_set: RecordSet, split: str, loading: Loading, share: Share) -> None:
        self._examples = Examples(
            record_set,
            split,
            stems=loading.stems,
            targets=loading.targets,
            channels=loading.channels,
            crop_samples=loading.crop_samples,
            augmentation=loading.augmentation,
        )
        self._loading = loading
        self._share = share
        self._stop = loading.crop_samples if share.stop is None else share.stop
        self._path = record_set.path
        settings = {name: value for name, value in loading.to_dict().items() if name not in _FREE_TO_CHANGE}
        self._identity = {"set": record_set.fingerprint, "split": split, **settings}
        self._next = 0  # number of the next batch
        self._pipeline: _Pipeline | None = None
        self.seconds_waited = 0.0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          InputError: a record is damaged, or a worker has died.
        """
        began = time.perf_counter()
        if self._pipeline is None:
            self._pipeline = self._start()
        pipeline = self._pipeline
        try:
            batch = pipeline.fetch.result()
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise InputError(
                f"a worker that loads batches has died ({error}): if memory is short, set fewer workers, a smaller "
                'prefetch or shorter crops; a script that loads must start under `if __name__ == "__main__":`'
            ) from error
        except BaseException:
            self.close()
            raise
        pipeline.fetch = pipeline.fetcher.submit(_fetch, pipeline.iterator)
        self._next += 1
        self.seconds_waited += time.perf_counter() - began
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON types, the same for every share; `set_state` of an equal iterator accepts it."""
        return {"batch": self._next, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to the position of `state`, which an iterator returned from `get_state`.

        That iterator may have had another share, and other numbers of workers and of prefetched batches.

        Raises:
          InputError: the state belongs to another set or to other settings, or it is damaged.
        """
        expected, found = flattened(self._identity), flattened(state)
        if found.get("set") != expected["set"]:
            raise InputError(
                f"the batches to resume belong to another set than {self._path}, or it was prepared anew since: give "
                "that set, or start a new run"
            )
        for name, value in expected.items():
            if name not in found or found[name] != value:
                raise InputError(
                    f"the batches to resume had {name} = {found.get(name)!r}, not {value!r}: set it back, or start "
                    "a new run"
                )
        number = state.get("batch")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(
                f"the batches to resume begin at number {number!r}, expected a whole number: the state is damaged, "
                "go on from another checkpoint"
            )
        self.close()
        self._next = number

    def close(self) -> None:
        """Ends the workers. The iterator can still be used: the next batch starts them again."""
        if self._pipeline is None:
            return
        # First wait for the batch that is being made: grain does not end workers that are just starting, and the shared
        # memory of a batch that is dropped at the very end would outlive the process.
        wait([self._pipeline.fetch], _SECONDS_TO_FINISH)
        self._pipeline.iterator.close()
        self._pipeline.fetcher.shutdown(wait=False)
        self._pipeline = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Pipeline:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its settings from them
        loading, share = self._loading, self._share
        dataset = (
            grain.MapDataset.range(len(self._examples))
            .shuffle(seed=loading.seed)
            .repeat()
            .random_map(self._examples.draw, seed=loading.seed)
            .batch(loading.batch_size, drop_remainder=True, batch_fn=list)  # lists of recipes, which are cheap
            .slice(slice(self._next, None))
            .map(functools.partial(_picked, share.rows))
            .map(functools.partial(self._examples.render, start=share.start, stop=self._stop))
        )
        if loading.workers:
            dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            if not fits_into_shared_memory(loading, share):
                through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
                dataset = grain.experimental.WithOptionsIterDataset(dataset, through_pipes)
            options = grain.MultiprocessingOptions(loading.workers, per_worker_buffer_size=loading.prefetch)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_the_main_process)
        else:
            dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=loading.prefetch))
        fetcher = ThreadPoolExecutor(1, "batches", initializer=_leave_interrupts_to_the_main_thread)
        iterator = iter(dataset)
        return _Pipeline(iterator, fetcher, fetcher.submit(_fetch, iterator))


@dataclasses.dataclass
class _Pipeline:
    """The running iterator of grain, and the batch that it is making."""

    iterator: Any
    fetcher: ThreadPoolExecutor
    fetch: Future[Batch]


def fits_into_shared_memory(loading: Loading, share: Share) -> bool:
    """Whether all batches that the workers hold at a time fit into the free shared memory.

    A worker that finds none is killed by the system. Containers often have only 64 MB.
    """
    if not os.path.isdir(_SHARED_MEMORY):
        return True
    rows = loading.batch_size if share.rows is None else len(share.rows)
    stop = loading.crop_samples if share.stop is None else share.stop
    samples = rows * (1 + len(loading.targets)) * (stop - share.start)
    num_batches = loading.workers * (loading.prefetch + 1) + 1
    return 4 * loading.channels * samples * num_batches < shutil.disk_usage(_SHARED_MEMORY).free


def _picked(rows: tuple[int, ...] | None, recipes: list[Recipe]) -> list[Recipe]:
    return recipes if rows is None else [recipes[row] for row in rows]


def _fetch(iterator: Iterator[Batch]) -> Batch:
    """Returns the next batch in memory of this process: shared memory is scarce, and callers may keep batches."""
    return {name: array if array.flags.owndata else np.array(array) for name, array in next(iterator).items()}


def _leave_interrupts_to_the_main_thread() -> None:
    """Blocks SIGINT in this thread and in the processes that it starts, so that only the main thread gets Ctrl-C."""
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _end_with_the_main_process(worker: int, num_workers: int) -> None:
    """Makes this worker end when the main process does, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only runs in workers

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
