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
import json
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from wroformer_jax.checkpoints.model_dir import saved_steps
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches, Share, batches
from wroformer_jax.io.buckets import is_remote, place
from wroformer_jax.io.files import disk_errors_named, locked
from wroformer_jax.model.bands import band_layout
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import check_batch, make_mesh
from wroformer_jax.parallel.processes import Preemption, check_same, gather, in_first, is_first, together
from wroformer_jax.parallel.sharding import local_part
from wroformer_jax.training.data import TRAIN, loading_of, open_songs, synthesised_songs
from wroformer_jax.training.initialisation import frozen_teacher, starting_params
from wroformer_jax.training.loop import Run, best_params, training_tree
from wroformer_jax.training.monitor import Watch
from wroformer_jax.training.optimizer import make_optimizer
from wroformer_jax.training.state import TrainState, abstract_state, batch_shapes, initial_state
from wroformer_jax.training.validation import Validation
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.log import METRICS_FILE, TrainingLog
from wroformer_jax.workdir.mirror import Mirror
from wroformer_jax.workdir.ownership import check_shared, claim, refuse_other


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
    check_batch(config.batch_size, mesh, accumulate=config.optimizer.accumulate)
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
            in_first(lambda: mirror.bring(METRICS_FILE))
        folder = mirror.folder if mirror else workdir
        stack.enter_context(disk_errors_named(folder))
        if not mirror:
            in_first(lambda: stack.enter_context(locked(workdir)))
        checkpoints = stack.enter_context(
            TrainingCheckpoints(workdir, config.model, max_to_keep=config.checkpoints.keep)
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
        run = Run(
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
    if config.optimizer.ema:
        return _Start(TrainState(**training, ema=params), interval)
    return _Start(TrainState(**training, params=params, ema=None), interval)
