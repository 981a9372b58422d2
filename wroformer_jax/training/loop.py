"""The loop over the steps of a run."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.validation_songs import Estimates, ValidationSong
from wroformer_jax.io.buckets import Place
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import num_parameters
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.processes import Preemption, gather, in_first, whole_here
from wroformer_jax.parallel.sharding import to_global
from wroformer_jax.training.monitor import Watch
from wroformer_jax.training.state import Teacher, TrainState, batch_shapes
from wroformer_jax.training.step import make_train_step
from wroformer_jax.training.throughput import work_of
from wroformer_jax.training.trace import StepTrace
from wroformer_jax.training.validation import Validation
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.excerpts import SONGS, Excerpt, excerpt_of
from wroformer_jax.workdir.log import TrainingLog, describe
from wroformer_jax.workdir.mirror import Mirror
from wroformer_jax.workdir.report import write_curves, write_example


class PreemptedError(Exception):
    """The machine will be taken away: the state is saved, and the same command goes on from there."""


class Run(NamedTuple):
    """What a run needs at every step."""

    config: TrainingConfig
    mesh: Mesh
    teacher: Teacher | None
    loader: Batches
    validation: Validation
    checkpoints: TrainingCheckpoints
    log: TrainingLog | None  # in the first process
    watch: Watch
    preemption: Preemption
    workdir: Place
    folder: Path  # of the log and the report: the workdir, or what stands for it on this machine
    mirror: Mirror | None  # if the workdir is in a bucket

    def finish(self, state: TrainState) -> dict[str, float]:
        """Takes the steps that are left, and writes the report."""
        validation = self.validation
        self._say(_greeting(self.config, state, self.mesh, self.workdir))
        if not validation:
            self._say(
                "there are no songs to validate on, so no SDR: prepare some as validation or test, see docs/data.md"
            )
        step = int(state.step)
        # The scores before the first step, or those that there was no time for when the run was preempted.
        if validation and step % self.config.validation.every == 0 and step not in self._validated_steps():
            self._validate(state)
        with StepTrace(self.config.profile_steps, self.folder / "profile") as trace:
            state = self._steps(state, trace)
        self.checkpoints.finish()
        if validation and int(state.step) not in self._validated_steps():  # its record was lost
            self._validate(state)
        params = whole_here(best_params(state), self.mesh)
        in_first(lambda: self._report(params))
        [scores, *_] = gather(self.log.last_validation() if self.log else None)
        self._say(_farewell(self.workdir, scores or {}))
        return scores or {}

    def _steps(self, state: TrainState, trace: StepTrace) -> TrainState:
        """Steps until the last one. Log, validation and checkpoint of a step are written in this order."""
        config, watch = self.config, self.watch
        train_step = make_train_step(config, self.mesh, self.teacher)
        first = int(state.step)
        self._say("compiling the training step, which takes a minute or several")
        watch.begin(work_of(config, self.mesh, self.teacher.model.config if self.teacher else None))
        for step in range(first + 1, config.steps + 1):
            batch = self._next_batch()
            trace.begin(step, state)
            state, metrics = train_step(state, to_global(batch, self.mesh, batch_shapes(config, self.mesh)))
            trace.end(step, metrics)
            watch.take(step, metrics, batch)
            if step == first + 1:
                jax.block_until_ready(metrics)
                self._say(f"compiled and took the first step in {watch.clock.seconds:.1f} s")
                watch.catch_up()
                watch.clock.restart()
            last = step == config.steps
            preempted = self.preemption.reached() and not last
            validate = bool(self.validation) and not preempted and (step % config.validation.every == 0 or last)
            if validate or preempted or step % config.checkpoints.every == 0 or last:
                watch.catch_up()
                began = time.perf_counter()
                score = self._validate(state, stop=lambda: self.preemption.noticed) if validate else None
                preempted = preempted or (validate and score is None)
                if self.mirror:  # a step that is saved has its log beside it
                    self.mirror.copy()
                self.checkpoints.save(step, best_params(state), self._training_tree(state), score=score)
                watch.clock.leave_out(time.perf_counter() - began)
            if preempted:  # a validation that was broken off is made up for when the run goes on
                self.checkpoints.finish()
                raise PreemptedError(f"step {step} of {config.steps} is saved in {self.workdir}")
        return state

    def _next_batch(self) -> dict[str, np.ndarray]:
        try:
            return next(self.loader)
        except InputError:
            if not self.preemption.comes(1.0):  # the workers get SIGTERM, too, and maybe before us
                raise
            return next(self.loader)  # new ones go on where they were

    def _validate(self, state: TrainState, stop: Callable[[], bool] = lambda: False) -> float | None:
        """Writes the scores of the songs, and returns the one by which the best checkpoint is known; None if stopped.

        Args:
          state: after a step.
          stop: asked before each song: whether to break off.
        """
        excerpts: list[Excerpt] = []  # of the first songs, which are the first process's

        def keep(song: ValidationSong, estimates: Estimates) -> None:
            if len(excerpts) < SONGS:
                excerpts.append(excerpt_of(self.config.model, song, estimates))

        scores = self.validation.score(whole_here(best_params(state), self.mesh), heard=keep, stop=stop)
        if scores is None:
            return None
        if self.log:
            self.log.validation(int(state.step), scores, excerpts)
        return scores["usdr"]

    def _validated_steps(self) -> list[int]:
        [steps, *_] = gather([step for step, _ in self.log.curve("validation", "usdr")] if self.log else None)
        return steps

    def _training_tree(self, state: TrainState) -> dict[str, Any]:
        return training_tree(state, self.loader, self.watch.interval)

    def _report(self, params: Params) -> None:
        for song in itertools.islice(self.validation, 1):
            write_example(self.folder, RoFormer(self.config.model), params, song, self.validation.chunk_seconds)
        write_curves(self.folder, self.log)

    def _say(self, line: str) -> None:
        if self.log:
            self.log.say(line)


def best_params(state: TrainState) -> Params:
    """The parameters to use: the moving average if there is one."""
    return state.params if state.ema is None else state.ema


def training_tree(state: TrainState, loader: Batches, interval: list[dict[str, float]]) -> dict[str, Any]:
    """What resuming needs besides `best_params`.

    Args:
      state: after a step.
      loader: which has given the batch of that step, and no more.
      interval: what the steps since the last log measured.
    """
    saved_apart = ("ema",) if state.ema is not None else ("params", "ema")
    tree = {name: value for name, value in state._asdict().items() if name not in saved_apart}
    return {**tree, "data": json.dumps(loader.get_state()), "interval": json.dumps(interval)}


def _greeting(config: TrainingConfig, state: TrainState, mesh: Mesh, workdir: Place) -> str:
    step = int(state.step)
    start = f"going on from step {step}" if step else "starting"
    return (
        f"{start}: {config.steps} steps, a model of {num_parameters(config.model) / 1e6:.2f} M parameters, "
        f"{mesh.size} {jax.default_backend()} device(s), results in {workdir}"
    )


def _farewell(workdir: Place, scores: dict[str, float]) -> str:
    return "\n".join(
        [
            f"done: {describe(scores)}" if scores else "done",
            f"listen to {workdir / 'example'}, look at {workdir / 'spectrogram.png'} and {workdir / 'curve.png'}"
            if scores
            else f"look at {workdir / 'curve.png'}",
            "what to do next:",
            f"  wroformer separate song.wav --checkpoint {workdir} --output separated",
            f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)",
        ]
    )
