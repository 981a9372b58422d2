"""Batches of augmented crops of a prepared set: sharded by process, shuffled by seed, and resumed exactly.

Every batch is a pure function of the set, the settings and its number, whatever the number of workers and of
processes: example n of the endless shuffled sequence is drawn from (seed, n), and batch b is made of the examples
b * batch_size to (b + 1) * batch_size - 1. So the number of the next batch is all the state there is.
"""

from __future__ import annotations

import dataclasses
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

from wroformer_jax.data.augment import Augmentation
from wroformer_jax.data.crops import Batch, Examples
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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                bounds = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
                raise InputError(f"{name} is {value!r}, expected a whole number {bounds}")
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
    ("crop_samples", 1, float("inf")),
    ("batch_size", 1, float("inf")),
    ("channels", 1, 2),
    ("seed", 0, 2**32 - 1),
    ("workers", 0, float("inf")),
    ("prefetch", 1, float("inf")),
)


def batches(
    record_set: RecordSet, split: str, loading: Loading, *, process_index: int = 0, process_count: int = 1
) -> Batches:
    """The endless batches of a split of a prepared set.

    Args:
      record_set: a prepared set.
      split: of the set.
      loading: the settings.
      process_index: number of this process, from 0.
      process_count: processes that share each batch: this one gets its part of the rows, which lie in a row.

    Raises:
      InputError: no such split, stem or target, a batch size that the processes cannot share evenly, or a process that
        is none of them.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index is {process_index}, expected a number from 0 to {process_count - 1}")
    if loading.batch_size % process_count:
        raise InputError(
            f"batch_size is {loading.batch_size}, which {process_count} processes cannot share evenly: "
            f"expected a multiple of {process_count}"
        )
    return Batches(record_set, split, loading, process_index, process_count)


class Batches:
    """Batches: dicts of "mixture" (batch, channel, sample) and "targets" (batch, target, channel, sample).

    The arrays are float32, full scale 1; the mixture is the sum of its stems. Workers start with the first batch that
    is asked for; `close` ends them, and so does the end of this process, however it comes. Also a context manager.

    Attributes:
      seconds_waited: time spent waiting for batches so far; the first one includes the start of the workers.
    """

    def __init__(
        self, record_set: RecordSet, split: str, loading: Loading, process_index: int, process_count: int
    ) -> None:
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
        self._process = (process_index, process_count)
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
        """Where the iterator is, for `set_state` of one like it: a JSON-able dict, the same in every process."""
        return {"batch": self._next, **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on with the batch after the last one that the iterator had given when it gave this state.

        The numbers of workers, of prefetched batches and of processes may be others now.

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
        loading, (index, count) = self._loading, self._process
        dataset = (
            grain.MapDataset.range(len(self._examples))
            .shuffle(seed=loading.seed)
            .repeat()
            .random_map(self._examples.draw, seed=loading.seed)
            .batch(loading.batch_size // count, drop_remainder=True, batch_fn=list)
            .slice(slice(self._next * count + index, None, count))
            .map(self._examples.render)
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
        loading = self._loading
        samples = loading.batch_size // self._process[1] * (1 + len(loading.targets)) * loading.crop_samples
        under_way = loading.workers * (loading.prefetch + 1) + 1
        return 4 * loading.channels * samples * under_way < shutil.disk_usage(_SHARED_MEMORY).free


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
