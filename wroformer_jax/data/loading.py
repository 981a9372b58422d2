"""Batches of augmented crops of a prepared set: shared by processes, shuffled by seed, and resumed exactly.

Every batch is a pure function of the set, the settings and its number, whatever the number of workers and however
processes share it: example n of the endless shuffled sequence is drawn from (seed, n), and batch b is made of the
examples b * batch_size to (b + 1) * batch_size - 1. So the number of the next batch is all the state there is. A
process reads and mixes its `Share` only: some of the rows, and of each a stretch of time.
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
from wroformer_jax.data.examples import Batch, Examples, Recipe
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.errors import InputError

_FREE_TO_CHANGE = ("workers", "prefetch")  # without changing a batch
_SHARED_MEMORY = "/dev/shm"
_SECONDS_TO_FINISH = 5  # a batch that is asked for already, before the workers are ended


@dataclasses.dataclass(frozen=True)
class Loading:
    """What batches are made of, and by whom.

    Raises:
      InputError: a field has an impossible value.
    """

    crop_samples: int  # length of an example; a song that is shorter is followed by silence
    batch_size: int  # examples of a batch, all processes together
    targets: tuple[str, ...]  # stems to estimate; "instrumental" is the sum of all stems but vocals
    stems: tuple[str, ...] = ()  # what the mixture is the sum of; none means all stems of the set
    channels: int = 2
    seed: int = 0  # below 2^32
    workers: int = 1  # processes that read and augment beside this one; 0: a thread of this one does
    prefetch: int = 2  # batches that each worker keeps ready
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, least, most in _WHOLE_NUMBERS:
            _check_whole_number(name, getattr(self, name), least, most)
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
        """A dict of plain JSON types."""
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


def _check_whole_number(name: str, value: Any, least: int, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"{name} is {value!r}, expected a whole number {bounds}")


@dataclasses.dataclass(frozen=True)
class Share:
    """What a process has of every batch: some of its rows, and of each of them a stretch of time.

    Several processes may have the same rows, each another stretch of them, or the same of both.

    Raises:
      InputError: there are no such rows, or no such stretch.
    """

    rows: tuple[int, ...] | None = None  # numbers of the rows, from 0, ascending; None: all
    start: int = 0  # first sample of the stretch, from 0
    stop: int | None = None  # the sample after its last one, silence from the end of the example on; None: that end

    def __post_init__(self) -> None:
        if self.rows is not None:
            for row in self.rows:
                _check_whole_number("rows", row, 0)
            if not self.rows or list(self.rows) != sorted(set(self.rows)):
                raise InputError(f"rows is {self.rows!r}, expected numbers that ascend, at least one")
        _check_whole_number("start", self.start, 0)
        if self.stop is not None:
            _check_whole_number("stop", self.stop, self.start + 1)


_WHOLE = Share()


def batches(record_set: RecordSet, split: str, loading: Loading, share: Share = _WHOLE) -> Batches:
    """The endless batches of a split of a prepared set, or a share of each.

    Args:
      record_set: a prepared set.
      split: of the set.
      loading: the settings.
      share: what this process has of every batch.

    Raises:
      InputError: no such split, stem or target, rows that a batch does not have, or a stretch that has no end and
        begins behind the examples.
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
    """Batches: dicts of "mixture" (batch, channel, sample) and "targets" (batch, target, channel, sample).

    Of rows and samples they have those of the share. The arrays are float32, full scale 1; the mixture is the sum of
    its stems. Workers start with the first batch that is asked for; `close` ends them, and so does the end of this
    process, however it comes. Also a context manager.

    Attributes:
      seconds_waited: time spent waiting for batches so far; the first one includes the start of the workers.
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
        self._iterator: Any = None
        self._fetcher: ThreadPoolExecutor | None = None
        self._fetch: Future | None = None
        self.seconds_waited = 0.0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          InputError: a damaged record, or a worker that has died.
        """
        began = time.perf_counter()
        if self._iterator is None:
            self._start()
        try:
            batch = self._fetch.result()
        except RuntimeError as error:
            self.close()
            if "terminated unexpectedly" not in str(error):
                raise
            raise InputError(
                f"a worker that loads batches has died ({error}): where memory is short, set fewer workers, a smaller "
                'prefetch or shorter crops; a script that loads must start under `if __name__ == "__main__":`'
            ) from error
        except BaseException:
            self.close()
            raise
        self._fetch = self._fetcher.submit(_fetch, self._iterator)
        self._next += 1
        self.seconds_waited += time.perf_counter() - began
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the iterator is, for `set_state` of one like it: a JSON-able dict, the same for every share."""
        return {"batch": self._next, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on with the batch after the last one that the iterator had given when it gave this state.

        The share and the numbers of workers and of prefetched batches may be others now.

        Raises:
          InputError: the state is of another set or of other settings, or it is damaged.
        """
        here, there = _flat(self._identity), _flat(state)
        if there.get("set") != here["set"]:
            raise InputError(
                f"the batches to go on with are of another set than {self._path}, or it was prepared anew since: give "
                "that set, or start a new run"
            )
        for name, value in here.items():
            if name not in there or there[name] != value:
                raise InputError(
                    f"the batches to go on with had {name} = {there.get(name)!r}, not {value!r}: set it back, or start "
                    "a new run"
                )
        number = state.get("batch")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(
                f"the batches to go on with begin at number {number!r}, expected a whole number: the state is damaged, "
                "go on from another checkpoint"
            )
        self.close()
        self._next = number

    def close(self) -> None:
        """Ends the workers. Asked for a batch after that, the iterator starts them anew and goes on."""
        if self._iterator is None:
            return
        # What is under way is waited for: grain closes no worker that it is just starting, and the shared memory of a
        # batch that is dropped at the very end would outlive the process.
        wait([self._fetch], _SECONDS_TO_FINISH)
        self._iterator.close()
        self._fetcher.shutdown(wait=False)
        self._iterator = self._fetcher = self._fetch = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its settings there
        loading, share = self._loading, self._share
        dataset = (
            grain.MapDataset.range(len(self._examples))
            .shuffle(seed=loading.seed)
            .repeat()
            .random_map(self._examples.draw, seed=loading.seed)
            .batch(loading.batch_size, drop_remainder=True, batch_fn=list)  # of recipes, which cost little
            .slice(slice(self._next, None))
            .map(functools.partial(_picked, share.rows))
            .map(functools.partial(self._examples.render, start=share.start, stop=self._stop))
        )
        if loading.workers:
            dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            if not self._fits_into_shared_memory():
                through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
                dataset = grain.experimental.WithOptionsIterDataset(dataset, through_pipes)
            options = grain.MultiprocessingOptions(loading.workers, per_worker_buffer_size=loading.prefetch)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_the_main_process)
        else:
            dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=loading.prefetch))
        self._fetcher = ThreadPoolExecutor(1, "batches", initializer=_leave_interrupts_to_the_main_thread)
        self._iterator = iter(dataset)
        self._fetch = self._fetcher.submit(_fetch, self._iterator)

    def _fits_into_shared_memory(self) -> bool:
        """Whether all batches under way do; a worker that finds none is killed. Containers often have 64 MB only."""
        if not os.path.isdir(_SHARED_MEMORY):
            return True
        loading, share = self._loading, self._share
        rows = loading.batch_size if share.rows is None else len(share.rows)
        samples = rows * (1 + len(loading.targets)) * (self._stop - share.start)
        under_way = loading.workers * (loading.prefetch + 1) + 1
        return 4 * loading.channels * samples * under_way < shutil.disk_usage(_SHARED_MEMORY).free


def _picked(rows: tuple[int, ...] | None, recipes: list[Recipe]) -> list[Recipe]:
    return recipes if rows is None else [recipes[row] for row in rows]


def _fetch(iterator: Iterator[Batch]) -> Batch:
    """The next batch in memory of this process, so that it may be kept: shared memory is scarce."""
    return {name: array if array.flags.owndata else np.array(array) for name, array in next(iterator).items()}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping of mappings as one, with names like "augmentation.remix"."""
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _leave_interrupts_to_the_main_thread() -> None:
    """Blocks SIGINT in this thread, and thereby in the processes it starts: Ctrl-C is the main thread's alone."""
    resource_tracker.ensure_running()  # its start would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _end_with_the_main_process(worker: int, num_workers: int) -> None:
    """Has this worker end when the main process does, even if that was killed."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
