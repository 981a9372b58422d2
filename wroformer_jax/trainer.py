"""The training loop: it validates, saves, and resumes exactly, on one host or on many.

The quickstart's way through this file: `train` claims the workdir, opens the set of songs or has one synthesised,
restores or makes a `TrainState`, and runs the step of train_step.py on batches that are a pure function of (seed,
step). The weights after the last step are therefore the same bit for bit whether a run was killed on the way or not.

On several hosts all processes go the same way: each takes its rows of a batch and saves what its devices hold, and the
first one alone writes the log and the report. Of a run in a bucket these lie in a local folder, whose files are copied
up (mirror.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from wroformer_jax.checkpoints.model_dir import saved_steps
from wroformer_jax.checkpoints.torch_weights import num_parameters
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches, Share, batches
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.whole_songs import Estimates, WholeSong
from wroformer_jax.io.buckets import Place, is_remote, place
from wroformer_jax.io.files import disk_errors_named, locked
from wroformer_jax.model.bands import band_layout
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.optimizer import make_optimizer
from wroformer_jax.parallel.mesh import check_batch, make_mesh
from wroformer_jax.parallel.processes import Preemption, check_same, gather, in_first, is_first, together, whole_here
from wroformer_jax.parallel.sharding import local_part, to_global
from wroformer_jax.profiling import StepTrace
from wroformer_jax.speed import work_of
from wroformer_jax.starting_point import frozen_teacher, starting_params
from wroformer_jax.train_step import (
    Teacher,
    TrainState,
    abstract_state,
    batch_shapes,
    initial_state,
    make_train_step,
)
from wroformer_jax.training_data import TRAIN, Validation, loading_of, open_songs, synthesised_songs
from wroformer_jax.watch import Watch
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.claim import check_shared, claim, refuse_other
from wroformer_jax.workdir.excerpts import SONGS, Excerpt, excerpt_of
from wroformer_jax.workdir.log import METRICS, TrainingLog, describe
from wroformer_jax.workdir.mirror import Mirror
from wroformer_jax.workdir.report import write_curves, write_example


class PreemptedError(Exception):
    """The machine will be taken away: the state is saved, and the same command goes on from there."""


def train(config: TrainingConfig, workdir: str | Path) -> dict[str, float]:
    """Trains on a set of songs, or goes on from the newest checkpoint in `workdir`, and writes its report.

    On several hosts (see `hosts.connect`) all call this, with the same config and a workdir that all see.

    Args:
      config: the settings of the run.
      workdir: a directory, made if need be, or a place in a bucket (gs://BUCKET/RUN). Gets checkpoints/, model.json,
        config.json, metrics.jsonl, events/ (TensorBoard), example/ (wavs of a validation song), spectrogram.png,
        curve.png and, without `config.data`, songs/.

    Returns:
      The scores of the last validation, as `evaluate.mean_scores` has them; nothing if there are no validation songs.

    Raises:
      InputError: the workdir cannot be reached or written, is in use or holds a run with other settings, the songs or
        the checkpoint to start from cannot be used, the mesh does not fit the devices, the hosts have different
        settings, the loss stays no number, or the last state cannot be saved.
      PreemptedError: SIGTERM came, and the state after the step under way is saved.
    """
    check_same({**config.to_dict(), "workdir": str(workdir)})
    # What makes no model or no optimiser is refused here, before the workdir is claimed.
    band_layout(config.model)
    make_optimizer(config, abstract_params(RoFormer(config.model)))
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, mesh, accumulate=config.accumulate)
    share = together(lambda: _share(config, mesh))
    songs = together(lambda: open_songs(config)) if config.data else None
    if songs:  # stems that there are not are refused before the claim, too
        together(lambda: batches(songs, TRAIN, loading_of(config), share).close())
    workdir = together(lambda: place(workdir))  # only now: the songs are opened with listings that are remembered
    in_first(lambda: refuse_other(workdir, config))
    # A teacher or weights of another size are refused before the claim. A run that goes on needs no weights.
    teacher = together(lambda: frozen_teacher(config, mesh))
    goes_on = any(gather(together(lambda: bool(saved_steps(workdir)))))
    init = None if goes_on else together(lambda: starting_params(config))
    in_first(lambda: claim(workdir, config))
    check_shared(workdir)
    with contextlib.ExitStack() as stack:
        mirror = None
        if is_remote(workdir):
            mirror = together(lambda: stack.enter_context(Mirror(workdir, jax.process_index())))
            in_first(lambda: mirror.bring(METRICS))
        folder = mirror.folder if mirror else workdir
        stack.enter_context(disk_errors_named(folder))
        if not mirror:
            in_first(lambda: stack.enter_context(locked(workdir)))
        checkpoints = stack.enter_context(
            TrainingCheckpoints(workdir, config.model, max_to_keep=config.keep_checkpoints)
        )
        songs = songs or synthesised_songs(config, workdir)
        loader = stack.enter_context(batches(songs, TRAIN, loading_of(config), share))
        start = _restored(config, mesh, checkpoints, loader, init)
        del init  # the state has them
        step = int(start.state.step)
        log = stack.enter_context(TrainingLog(folder, step, config.steps)) if is_first() else None
        watch = Watch(config, workdir, folder, log, loader, start.interval)
        preemption = stack.enter_context(Preemption(mesh))
        validation = Validation(config, songs)
        run = _Run(
            config, mesh, teacher, loader, validation, checkpoints, log, watch, preemption, workdir, folder, mirror
        )
        return run.finish(start.state)


def _share(config: TrainingConfig, mesh: Mesh) -> Share:
    """What this process loads of every batch."""
    rows, samples = local_part(mesh, batch_shapes(config, mesh)["mixture"])
    return Share(rows, samples.start, samples.stop)


class _Start(NamedTuple):
    """Where a run goes on, or begins."""

    state: TrainState
    interval: list[dict[str, float]]  # what the steps since the last log measured


class _Run(NamedTuple):
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
        if validation and step % self.config.validate_every == 0 and step not in self._validated_steps():
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
            validate = bool(self.validation) and not preempted and (step % config.validate_every == 0 or last)
            if validate or preempted or step % config.checkpoint_every == 0 or last:
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

        def keep(song: WholeSong, estimates: Estimates) -> None:
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


def _restored(
    config: TrainingConfig, mesh: Mesh, checkpoints: TrainingCheckpoints, loader: Batches, init: Params | None
) -> _Start:
    """The newest saved state, the loader set to go on from there; or the first one, of the weights `init`."""
    like = abstract_state(config, mesh)
    restored = checkpoints.restore(best_params(like), training_tree(like, loader, []))
    if restored is None:
        params = together(lambda: starting_params(config)) if init is None else init
        return _Start(initial_state(config, mesh, params), [])
    _, params, training = restored
    data, interval = json.loads(training.pop("data")), json.loads(training.pop("interval"))
    together(lambda: loader.set_state(data))
    if config.ema:
        return _Start(TrainState(**training, ema=params), interval)
    return _Start(TrainState(**training, params=params, ema=None), interval)


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
