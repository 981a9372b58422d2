"""What steps measured, looked at one step late: while the host looks, the device has the next step to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
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


class Watch:
    """Takes the metrics of each step, logs their means every so often, and ends a run that makes no more progress.

    Args:
      config: the settings.
      workdir: of the run, for people.
      folder: what stands for it on this machine; gets the batch of the last step of a run that is ended.
      log: of the run; None in all processes but the first.
      loader: whose waiting time is logged.
      interval: the metrics of the steps since the last log, where a run goes on between two logs.
    """

    def __init__(
        self,
        config: TrainingConfig,
        workdir: Place,
        folder: Path,
        log: TrainingLog | None,
        loader: Batches,
        interval: list[dict[str, float]],
    ) -> None:
        self._config, self._workdir, self._folder, self._log = config, workdir, folder, log
        self.clock = Clock(loader)
        self.interval = interval
        self._taken: tuple[int, Metrics, HostBatch] | None = None  # the step that is not looked at yet

    def begin(self, work: Work) -> None:
        """Starts the clock, and tells what each step from here on does, by which its speed is known."""
        self._work = work
        self.clock.restart()

    def take(self, step: int, metrics: Metrics, batch: HostBatch) -> None:
        """Takes what a step has given, and looks at the step before.

        Raises:
          InputError: as `catch_up`.
        """
        self.catch_up()
        self._taken = (step, metrics, batch)

    def catch_up(self) -> None:
        """Looks at the step taken last, once it is done: before a checkpoint, whose step must be in the log.

        Raises:
          InputError: it is one too many in a row whose loss or gradient is not finite. Its batch is saved.
        """
        if self._taken is None:
            return
        (step, metrics, batch), self._taken = self._taken, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.clock.steps += 1
        if values["skipped_in_a_row"] >= min(self._config.optimizer.max_skipped, self._config.steps):
            self._give_up(step, values["skipped_in_a_row"], batch)
        self.interval.append(values)
        if step % self._config.logging.every == 0 or step == self._config.steps:
            self._write(step)

    def _write(self, step: int) -> None:
        """Logs the steps since the last log; those that changed nothing are counted, and left out of the means."""
        kept = [values for values in self.interval if not values["skipped_in_a_row"]]
        last, number = self.interval[-1], len(self.interval)
        self.interval.clear()
        rates = self.clock.rates()
        self.clock.restart()
        if self._log is None:
            return
        rates |= speed(self._work, rates["seconds_per_step"])
        rates |= memory_in_use(jax.local_devices())
        if len(kept) < number:
            self._log.say(
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
        """Each process saves its own rows: to gather them takes memory where there may be none."""
        name = "bad_batch.npz" if jax.process_count() == 1 else f"bad_batch-{jax.process_index()}.npz"
        try:
            _save(self._folder / name, batch)
            saved = f"whose batch is in {self._workdir / name}"
        except OSError as error:
            saved = f"whose batch could not be saved ({error.strerror})"
        raise InputError(
            f"the loss or its gradient was not finite at {in_a_row} steps in a row, the last of them step {step}, "
            f"{saved}: look for what is wrong with it, or choose a lower learning_rate or clip_norm and another workdir"
        )


class Clock:
    """Time since the last restart, the steps counted in it, and how much of it was spent waiting for data."""

    def __init__(self, loader: Batches) -> None:
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        self.steps, self._began, self._waited = 0, time.perf_counter(), self._loader.seconds_waited

    def leave_out(self, seconds: float) -> None:
        """Does not count time that was spent otherwise."""
        self._began += seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def rates(self) -> dict[str, float]:
        seconds = self.seconds
        return {
            "seconds_per_step": seconds / max(1, self.steps),
            "data_wait": (self._loader.seconds_waited - self._waited) / seconds,
        }


def _save(path: Path, rows: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        np.savez(temporary, **rows)
