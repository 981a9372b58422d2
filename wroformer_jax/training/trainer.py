"""A training run from its settings to its report, on one host or on many.

`train` opens what the run reads and refuses what cannot work; then it claims the workdir, restores the newest
checkpoint or starts anew, and runs the loop of loop.py. Batches are a pure function of (seed, step), so the weights
after the last step are the same bit for bit whether or not the run was interrupted.

On several hosts all processes run the same code. Each loads its rows of a batch and saves what its devices hold; only
the first one writes the log and the report. If the workdir is in a bucket, these files are written to a local folder
and uploaded as they change (workdir/mirror.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from wroformer_jax.checkpoints.model_dir import saved_steps
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Share, batches
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.io.buckets import Place, is_remote, place
from wroformer_jax.io.files import disk_errors_named, locked
from wroformer_jax.model.bands import band_layout
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params, num_parameters
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import check_batch, make_mesh
from wroformer_jax.parallel.processes import Preemption, check_same, gather, in_first, is_first, together, whole_here
from wroformer_jax.parallel.sharding import local_part
from wroformer_jax.training.attention import with_checked_attention
from wroformer_jax.training.data import TRAIN, loading_of, open_songs, synthesised_songs
from wroformer_jax.training.initialisation import frozen_teacher, starting_params
from wroformer_jax.training.loop import Loop
from wroformer_jax.training.monitor import Monitor
from wroformer_jax.training.optimizer import make_optimizer
from wroformer_jax.training.saved_states import SavedStates
from wroformer_jax.training.state import Teacher, batch_shapes, params_to_use
from wroformer_jax.training.step import TrainStep, make_train_step
from wroformer_jax.training.throughput import work_of
from wroformer_jax.training.trace import StepTrace
from wroformer_jax.training.validation import Validation
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.log import METRICS_FILE, TrainingLog, describe
from wroformer_jax.workdir.mirror import Mirror
from wroformer_jax.workdir.ownership import check_shared, claim, refuse_other
from wroformer_jax.workdir.report import write_curves, write_example

MakeStep = Callable[[TrainingConfig, Mesh, Teacher | None], TrainStep]


def train(config: TrainingConfig, workdir: str | Path, *, make_step: MakeStep = make_train_step) -> dict[str, float]:
    """Trains on a set of songs, or continues from the newest checkpoint in `workdir`, and writes the report of the run.

    On several hosts (see `parallel.processes.connect`) every process calls this with the same settings and a workdir
    that all can see.

    Args:
      config: the settings of the run.
      workdir: a directory, made if it does not exist, or a place in a bucket (gs://BUCKET/RUN). It gets checkpoints/,
        model.json, config.json, metrics.jsonl, events/ (TensorBoard), example/ (wavs of a validation song),
        spectrogram.png, curve.png and, without `config.data`, songs/.
      make_step: makes the training step; pass another function to train with another loss.

    Returns:
      The scores of the last validation, see `evaluation.validation_songs.mean_scores`; empty without validation songs.

    Raises:
      InputError: the workdir cannot be reached or written, is in use or holds a run with other settings; the songs or
        the checkpoint to start from cannot be used; the mesh does not fit the devices; the hosts have different
        settings; the loss is not finite at too many steps in a row; or the last state cannot be saved.
      PreemptedError: SIGTERM came, and the state after the step under way is saved.
    """
    check_same({**config.to_dict(), "workdir": str(workdir)})
    inputs = _open_inputs(config, workdir)
    in_first(lambda: claim(inputs.workdir, config))
    check_shared(inputs.workdir)
    with contextlib.ExitStack() as stack:
        return _run(config, inputs, make_step, stack)


@dataclasses.dataclass
class _Inputs:
    """The inputs of a run, opened and checked before it writes anything."""

    workdir: Place
    mesh: Mesh
    share: Share  # what this process loads of every batch
    songs: RecordSet | None  # None if songs are to be synthesised in the workdir
    teacher: Teacher | None
    init: Params | None  # None for random weights, and for a run that continues


def _open_inputs(config: TrainingConfig, workdir: str | Path) -> _Inputs:
    """Opens what the run reads, and refuses settings that cannot work, before the workdir is claimed.

    Raises:
      InputError: see `train`.
    """
    band_layout(config.model)  # refuses bands that the model cannot have
    make_optimizer(config, abstract_params(RoFormer(config.model)))  # refuses patterns that match no parameter
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, mesh, accumulate=config.optimizer.accumulate)
    settled(config.model, mesh.devices.flat[0].platform)  # refuses a form of attention that the devices do not have
    share = together(lambda: _share(config, mesh))
    songs = together(lambda: open_songs(config)) if config.data else None
    if songs is not None:  # refuses stems that the set does not have
        together(lambda: batches(songs, TRAIN, loading_of(config), share).close())
    # Only now: from here on the client of the bucket caches no listings, which opening the set is quicker with.
    opened = together(lambda: place(workdir))
    in_first(lambda: refuse_other(opened, config))
    teacher = together(lambda: frozen_teacher(config, mesh))
    continues = any(gather(together(lambda: bool(saved_steps(opened)))))
    init = None if continues else together(lambda: starting_params(config))
    return _Inputs(opened, mesh, share, songs, teacher, init)


def _run(config: TrainingConfig, inputs: _Inputs, make_step: MakeStep, stack: contextlib.ExitStack) -> dict[str, float]:
    """Puts the parts of the run together, runs its loop and writes its report; `stack` closes what is opened here."""
    workdir, mesh, teacher = inputs.workdir, inputs.mesh, inputs.teacher
    folder, mirror = _open_folder(workdir, stack)
    checkpoints = stack.enter_context(TrainingCheckpoints(workdir, config.model, max_to_keep=config.checkpoints.keep))
    songs = synthesised_songs(config, workdir) if inputs.songs is None else inputs.songs
    loader = stack.enter_context(batches(songs, TRAIN, loading_of(config), inputs.share))
    states = SavedStates(config, mesh, checkpoints, loader, mirror)
    state, interval = states.restore(inputs.init)
    inputs.init = None  # the state has these weights: free the copy
    log = stack.enter_context(TrainingLog(folder, int(state.step), config.steps)) if is_first() else None
    work = work_of(config, mesh, teacher.model.config if teacher else None)
    computed, teacher = with_checked_attention(config, mesh, teacher)
    validation = Validation(computed, songs, log)
    loop = Loop(
        config=config,
        mesh=mesh,
        loader=loader,
        monitor=Monitor(config, workdir, folder, log, loader, work, interval),
        validation=validation,
        states=states,
        preemption=stack.enter_context(Preemption(mesh)),
        trace=StepTrace(config.profile_steps, folder / "profile"),
    )
    _say(log, _greeting(config, int(state.step), mesh, workdir))
    if not validation:
        _say(log, "there are no songs to validate on, so no SDR: prepare some as validation or test, see docs/data.md")
    state = loop.run(state, make_step(computed, mesh, teacher))
    params = whole_here(params_to_use(state), mesh)
    in_first(lambda: _write_report(computed, folder, params, validation, log))
    [scores, *_] = gather(log.last_validation() if log else None)
    _say(log, _farewell(workdir, scores or {}))
    return scores or {}


def _share(config: TrainingConfig, mesh: Mesh) -> Share:
    rows, samples = local_part(mesh, batch_shapes(config, mesh)["mixture"])
    return Share(rows, samples.start, samples.stop)


def _open_folder(workdir: Place, stack: contextlib.ExitStack) -> tuple[Path, Mirror | None]:
    """Returns the local folder for the log and the report, and its uploads if the workdir is in a bucket.

    The folder is locked against other runs on this machine until `stack` is closed.
    """
    if is_remote(workdir):
        mirror = together(lambda: stack.enter_context(Mirror(workdir, jax.process_index())))
        in_first(lambda: mirror.bring(METRICS_FILE))
        stack.enter_context(disk_errors_named(mirror.folder))
        return mirror.folder, mirror
    folder = Path(workdir)
    stack.enter_context(disk_errors_named(folder))
    in_first(lambda: stack.enter_context(locked(folder)))
    return folder, None


def _write_report(
    config: TrainingConfig, folder: Path, params: Params, validation: Validation, log: TrainingLog | None
) -> None:
    assert log is not None  # the first process has one
    for song in itertools.islice(validation, 1):
        write_example(folder, RoFormer(config.model), params, song, validation.chunk_seconds)
    write_curves(folder, log)


def _say(log: TrainingLog | None, line: str) -> None:
    if log:
        log.say(line)


def _greeting(config: TrainingConfig, step: int, mesh: Mesh, workdir: Place) -> str:
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
