"""Reads each step's metrics one step late, so that the device is never idle while the host logs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place
from wroformer_jax.io.files import replacing
from wroformer_jax.training.step import Metrics
from wroformer_jax.training.throughput import Work, memory_in_use, speed
from wroformer_jax.workdir.log import TrainingLog

_COUNTERS = ("skipped", "skipped_in_a_row")

HostBatch = Mapping[str, Float32[np.ndarray, "local ..."]]


class Monitor:
    """Collects the metrics of each step, logs their means, and ends a run that makes no progress any more.

    Args:
      config: the settings of the run.
      workdir: of the run, for messages.
      folder: the local folder of the log; gets the batch of the last step if the run is ended.
      log: of the run; None in all processes but the first.
      loader: the batches; the time that is spent waiting for them is logged.
      work: what each step computes, from which its speed is derived.
      interval: the metrics of the steps since the last log, for a run that continues between two logs.
    """

    def __init__(
        self,
        config: TrainingConfig,
        workdir: Place,
        folder: Path,
        log: TrainingLog | None,
        loader: Batches,
        work: Work,
        interval: list[dict[str, float]],
    ) -> None:
        self._config, self._workdir, self._folder, self._log, self._work = config, workdir, folder, log, work
        self._clock = Clock(loader)
        self.interval = interval
        self._taken: tuple[int, Metrics, HostBatch] | None = None  # the last step, whose metrics are not read yet

    def start(self) -> None:
        """Starts the clock. To be called before the first step, which compiles."""
        self._say("compiling the training step, which takes a minute or several")
        self._clock.restart()

    def take(self, step: int, metrics: Metrics, batch: HostBatch) -> None:
        """Takes the metrics of a step, and reads those of the step before.

        Raises:
          InputError: as `catch_up`.
        """
        self.catch_up()
        self._taken = (step, metrics, batch)

    def first_step_taken(self) -> None:
        """Waits for the first step, says how long it took, and starts the clock again."""
        assert self._taken is not None  # `take` was called
        jax.block_until_ready(self._taken[1])
        self._say(f"compiled and took the first step in {self._clock.seconds:.1f} s")
        self.catch_up()
        self._clock.restart()

    def catch_up(self) -> None:
        """Waits for the last step and reads its metrics, so that they are in the log before its checkpoint is saved.

        Raises:
          InputError: this is the last of too many steps in a row whose loss or gradient is not finite. Its batch is
            saved.
        """
        if self._taken is None:
            return
        (step, metrics, batch), self._taken = self._taken, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self._clock.steps += 1
        if values["skipped_in_a_row"] >= min(self._config.optimizer.max_skipped, self._config.steps):
            self._give_up(step, values["skipped_in_a_row"], batch)
        self.interval.append(values)
        if step % self._config.logging.every == 0 or step == self._config.steps:
            self._write(step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Catches up, and does not count the time that is spent inside as time of steps.

        Raises:
          InputError: as `catch_up`.
        """
        self.catch_up()
        began = time.perf_counter()
        yield
        self._clock.leave_out(time.perf_counter() - began)

    def _write(self, step: int) -> None:
        """Logs the steps since the last log. Skipped steps changed nothing: they are counted, but not averaged."""
        kept = [values for values in self.interval if not values["skipped_in_a_row"]]
        last, number = self.interval[-1], len(self.interval)
        self.interval.clear()
        rates = self._clock.rates()
        self._clock.restart()
        if self._log is None:
            return
        rates |= speed(self._work, rates["seconds_per_step"])
        rates |= memory_in_use(jax.local_devices())
        if len(kept) < number:
            self._say(
                f"step {step}: {number - len(kept)} of the last {number} steps were skipped, because their loss or "
                f"gradient was not finite ({last['skipped']} so far)"
            )
        if not kept:
            return
        means = {
            name: float(np.mean([values[name] for values in kept], dtype=np.float64))
            for name in kept[0]
            if name not in _COUNTERS
        }
        self._log.train(step, {**means, **{name: float(last[name]) for name in _COUNTERS}}, rates)

    def _give_up(self, step: int, in_a_row: int, batch: HostBatch) -> None:
        """Saves the batch, each process its own rows since memory to gather them may be short, and raises."""
        name = "bad_batch.npz" if jax.process_count() == 1 else f"bad_batch-{jax.process_index()}.npz"
        try:
            _save(self._folder / name, batch)
            saved = f"whose batch is in {self._workdir / name}"
        except OSError as error:
            saved = f"whose batch could not be saved ({error.strerror})"
        raise InputError(
            f"the loss or its gradient was not finite at {in_a_row} steps in a row, the last of them step {step}, "
            f"{saved}: look for what is wrong with it, or choose a lower optimizer.learning_rate or "
            "optimizer.clip_norm and another workdir"
        )

    def _say(self, line: str) -> None:
        if self._log:
            self._log.say(line)


class Clock:
    """Counts steps since the last restart, their time, and how much of it was spent waiting for batches."""

    def __init__(self, loader: Batches) -> None:
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        """Counts from zero."""
        self.steps, self._began, self._waited = 0, time.perf_counter(), self._loader.seconds_waited

    def leave_out(self, seconds: float) -> None:
        """Subtracts seconds that are not to be counted."""
        self._began += seconds

    @property
    def seconds(self) -> float:
        """Seconds since the last restart."""
        return time.perf_counter() - self._began

    def rates(self) -> dict[str, float]:
        """Returns "seconds_per_step", and "data_wait", the share of the time spent waiting for batches (0 to 1)."""
        seconds = self.seconds
        return {
            "seconds_per_step": seconds / max(1, self.steps),
            "data_wait": (self._loader.seconds_waited - self._waited) / seconds,
        }


def _save(path: Path, rows: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        np.savez(temporary, **rows)
