"""Training: one pure step, jitted once, and the loop around it that validates, saves, and resumes exactly.

The quickstart's way through this file: `train` claims the workdir, restores or initialises a `TrainState`,
synthesises the songs, and runs `train_step` on batches that are a pure function of (seed, step). The weights after
the last step are therefore the same bit for bit whether a run was killed on the way or not.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from wroformer_jax import plots
from wroformer_jax.bands import band_layout
from wroformer_jax.data.batches import (
    TRAIN,
    VALIDATION,
    SongPool,
    synthesise_pool,
    training_batches,
)
from wroformer_jax.errors import InputError
from wroformer_jax.evaluate import separate_song, validate
from wroformer_jax.files import disk_errors_named, locked, replacing
from wroformer_jax.losses import reconstruction_loss
from wroformer_jax.metrics import usdr
from wroformer_jax.model import Params, RoFormer, init_params, trainable_mask
from wroformer_jax.torch_bridge import num_parameters
from wroformer_jax.training_checkpoints import TrainingCheckpoints
from wroformer_jax.training_config import TrainingConfig
from wroformer_jax.training_log import TrainingLog, describe, progress

# Settings that do not change what is learnt, so that a resumed run may have them otherwise.
_FREE_TO_CHANGE = ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints")


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


Batch = dict[str, Float[Array, "batch channel sample"]]
Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """AdamW on gradients clipped to a global norm; only the matrices (`kernel`) decay."""

    def decays(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(_schedule(config), b2=0.99, weight_decay=config.weight_decay, mask=decays),
    )


def initial_state(config: TrainingConfig) -> TrainState:
    """Step 0: random parameters from the seed."""
    params = init_params(RoFormer(config.model), config.seed)
    state = TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(config).init(params))
    # Bound to a device, as a restored state is: the same program then serves both, compiled once.
    return jax.device_put(state, jax.devices()[0])


@functools.cache
def make_train_step(config: TrainingConfig) -> TrainStep:
    """The jitted step: (state, batch) to (state, metrics). The state given to it is donated: use it no more.

    The batch has "mixture" and "vocals", (batch, channel, sample); the metrics are "loss", "gradient_norm"
    (before clipping) and "learning_rate".
    """
    model, optimizer, schedule = RoFormer(config.model), make_optimizer(config), _schedule(config)

    def loss_of(params: Params, batch: Batch) -> Float[Array, ""]:
        estimate = model.apply({"params": params}, batch["mixture"])[:, 0]
        target = batch["vocals"][..., : estimate.shape[-1]]
        return reconstruction_loss(
            estimate,
            target,
            stft_n_fft=config.model.stft_n_fft,
            windows=config.loss_windows,
            hop=config.loss_hop,
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, gradients = jax.value_and_grad(loss_of)(state.params, batch)
        # A zero gradient is a zero update: the constants do not decay, and Adam moves nothing by 0 / (0 + eps).
        trainable = trainable_mask(state.params)
        gradients = jax.tree.map(lambda g, keep: g if keep else jnp.zeros_like(g), gradients, trainable)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step)),
        }
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def train(config: TrainingConfig, workdir: str | Path) -> dict[str, float]:
    """Trains on synthesised songs, or goes on from the newest checkpoint in `workdir`, and writes its report.

    Args:
      config: the settings of the run.
      workdir: made if need be. Gets checkpoints/, model.json, config.json, metrics.jsonl, events/ (TensorBoard),
        example/ (wavs of a validation song), spectrogram.png and curve.png.

    Returns:
      The scores of the last validation, as `evaluate.validate` has them.

    Raises:
      InputError: the workdir cannot be written, is in use or holds a run with other settings, or the loss is no longer
        a number.
    """
    workdir = Path(workdir)
    model = RoFormer(config.model)
    band_layout(config.model)  # sizes that make no model are refused here, before the workdir is claimed
    _claim(workdir, config)
    state = initial_state(config)
    with (
        disk_errors_named(workdir),
        locked(workdir),
        TrainingCheckpoints(workdir, config.model, max_to_keep=config.keep_checkpoints) as checkpoints,
    ):
        if restored := checkpoints.restore(state.params, state.opt_state):
            step, params, opt_state = restored
            state = TrainState(jax.device_put(jnp.int32(step), jax.devices()[0]), params, opt_state)
        with TrainingLog(workdir, int(state.step), config.steps) as log:
            log.say(_greeting(config, state, workdir))
            began = time.perf_counter()
            train_songs = _pool(config, TRAIN, config.train_songs)
            validation_songs = _pool(config, VALIDATION, config.validation_songs)
            log.say(f"synthesised the songs in {time.perf_counter() - began:.1f} s")
            if log.last_validation() is None:
                log.validation(int(state.step), validate(model, state.params, validation_songs))
            state = _loop(config, state, model, train_songs, validation_songs, checkpoints, log)
            if log.curve("validation", "vocals_usdr")[-1][0] != int(state.step):  # its record was lost
                log.validation(int(state.step), validate(model, state.params, validation_songs))
            _write_report(workdir, model, state.params, validation_songs, log)
            scores = log.last_validation()
            log.say(_farewell(workdir, scores))
    return scores


def _loop(
    config: TrainingConfig,
    state: TrainState,
    model: RoFormer,
    train_songs: SongPool,
    validation_songs: SongPool,
    checkpoints: TrainingCheckpoints,
    log: TrainingLog,
) -> TrainState:
    """Steps until the last one. Log, validation and checkpoint of a step are written in this order."""
    train_step = make_train_step(config)
    first = int(state.step)
    batches = training_batches(
        train_songs,
        config.seed,
        first,
        batch_size=config.batch_size,
        crop_samples=config.crop_samples,
        remix=config.remix,
    )
    pending: list[Metrics] = []
    began, timed_from = time.perf_counter(), first
    for step in range(first + 1, config.steps + 1):
        state, metrics = train_step(state, next(batches))
        pending.append(metrics)
        if step == first + 1:
            jax.block_until_ready(metrics)
            log.say(f"compiled and took the first step in {time.perf_counter() - began:.1f} s")
            began, timed_from = time.perf_counter(), step
        last = step == config.steps
        if step % config.log_every == 0 or last:
            means = _means(pending, step)
            seconds = (time.perf_counter() - began) / max(1, step - timed_from)
            log.train(step, **means, seconds_per_step=seconds)
            pending.clear()
        if step % config.validate_every == 0 or last:
            log.validation(step, validate(model, state.params, validation_songs))
        if step % config.checkpoint_every == 0 or last:
            checkpoints.save(step, state.params, state.opt_state)
        if not pending:
            began, timed_from = time.perf_counter(), step
    return state


def _schedule(config: TrainingConfig) -> optax.Schedule:
    """Linear warmup, then a cosine to zero at the last step."""
    warmup_steps = round(config.warmup * config.steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else config.learning_rate, config.learning_rate, warmup_steps, config.steps
    )


def _means(pending: list[Metrics], step: int) -> dict[str, float]:
    """Mean of each metric over the steps since the last log, in float64."""
    steps = jax.device_get(pending)
    means = {name: float(np.mean([metrics[name] for metrics in steps], dtype=np.float64)) for name in steps[0]}
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(means[name]):
            raise InputError(
                f"the {name.replace('_', ' ')} is {means[name]} at step {step}: training diverged, choose a lower "
                "learning_rate or clip_norm and another workdir"
            )
    return means


def _pool(config: TrainingConfig, split: int, num_songs: int) -> SongPool:
    what = {TRAIN: "synthesising songs", VALIDATION: "synthesising unseen songs"}[split]
    return synthesise_pool(
        config.seed,
        split,
        num_songs=num_songs,
        seconds=config.song_seconds,
        sample_rate=config.model.sample_rate,
        channels=config.model.channels,
        progress=functools.partial(progress, what=what),
    )


def _claim(workdir: Path, config: TrainingConfig) -> None:
    """Makes the workdir this run's: writes config.json, or checks that the one there has the same settings."""
    path = workdir / "config.json"
    with disk_errors_named(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same(workdir, _read_config(path), config.to_dict())
        elif (workdir / "model.json").exists():
            raise InputError(f"{workdir} holds a model but no config.json of a training: choose another workdir")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return TrainingConfig.from_dict(fields).to_dict()
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not the config of a training run ({error}): choose another workdir") from error


def _check_same(workdir: Path, there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> None:
    for name, value in here.items():
        if name == "model":
            _check_same(workdir, there[name], value, prefix="model.")
        elif name not in _FREE_TO_CHANGE and there[name] != value:
            raise InputError(
                f"{workdir} holds a run with {prefix}{name} = {there[name]!r}, not {value!r}: set it back to go on "
                "with that run, or choose another workdir"
            )


def _write_report(workdir: Path, model: RoFormer, params: Params, songs: SongPool, log: TrainingLog) -> None:
    """The first validation song, to hear and to see, and the curves of the run."""
    import soundfile

    sample_rate = model.config.sample_rate
    reference = songs.vocals[0]
    mixture = reference + songs.instrumental[0]
    estimate = separate_song(model, params, mixture)
    wavs = {
        "mixture": mixture,
        "vocals": estimate,
        "instrumental": mixture - estimate,
        "vocals_reference": reference,
    }
    (workdir / "example").mkdir(exist_ok=True)
    for name, audio in wavs.items():
        with replacing(workdir / "example" / f"{name}.wav") as temporary:
            soundfile.write(temporary, audio.T, sample_rate, subtype="FLOAT")  # a difference may exceed full scale
    panels = {
        "Mixture of an unseen song": mixture,
        "Vocals, reference": reference,
        f"Vocals, estimate: SDR {usdr(reference, estimate):.1f} dB": estimate,
    }
    plots.save_spectrograms(workdir / "spectrogram.png", panels, sample_rate=sample_rate)
    plots.save_curves(
        workdir / "curve.png",
        loss=log.curve("train", "loss"),
        sdr=log.curve("validation", "vocals_usdr"),
        mixture_sdr=log.last_validation()["mixture_usdr"],
    )


def _greeting(config: TrainingConfig, state: TrainState, workdir: Path) -> str:
    step = int(state.step)
    start = f"going on from step {step}" if step else "starting"
    return (
        f"{start}: {config.steps} steps, a model of {num_parameters(config.model) / 1e6:.2f} M parameters, "
        f"{jax.device_count()} {jax.default_backend()} device(s), results in {workdir}"
    )


def _farewell(workdir: Path, scores: dict[str, float]) -> str:
    return "\n".join(
        [
            f"done: {describe(scores)}",
            f"listen to {workdir / 'example'}, look at {workdir / 'spectrogram.png'} and {workdir / 'curve.png'}",
            "what to do next:",
            f"  wroformer separate song.wav --checkpoint {workdir} --output separated",
            f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)",
        ]
    )
