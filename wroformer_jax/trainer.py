"""Training: one pure step, jitted once, and the loop around it that validates, saves, and resumes exactly.

The quickstart's way through this file: `train` claims the workdir, opens the set of songs or has one synthesised,
restores or initialises a `TrainState`, and runs `train_step` on batches that are a pure function of (seed, step). The
weights after the last step are therefore the same bit for bit whether a run was killed on the way or not.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from wroformer_jax import plots
from wroformer_jax.bands import band_layout
from wroformer_jax.data.crops import whole_song
from wroformer_jax.data.loading import Batches, Loading, batches
from wroformer_jax.data.prepare import prepare_synthetic
from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.errors import InputError
from wroformer_jax.evaluate import WholeSong, separate_song, validate
from wroformer_jax.files import disk_errors_named, locked, replacing
from wroformer_jax.losses import reconstruction_loss
from wroformer_jax.metrics import usdr
from wroformer_jax.model import Params, RoFormer, init_params, trainable_mask
from wroformer_jax.separation import stem_names
from wroformer_jax.torch_bridge import num_parameters
from wroformer_jax.training_checkpoints import TrainingCheckpoints
from wroformer_jax.training_config import TrainingConfig
from wroformer_jax.training_log import TrainingLog, describe

# Settings that do not change what is learnt, so that a resumed run may have them otherwise.
# The songs may have been moved: the fingerprint of the set tells whether they are the same.
_FREE_TO_CHANGE = ("data", "workers", "prefetch", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints")

TRAIN = "train"
UNSEEN = ("validation", "test")  # the split to validate on: the first that a set has

# Where the songs of a run without a data set are kept, in its workdir.
_SYNTHETIC = "songs"


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


Batch = dict[str, Float[Array, "batch *stem channel sample"]]
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

    The batch has "mixture", (batch, channel, sample), and "targets", (batch, stem, channel, sample); the metrics are
    "loss", "gradient_norm" (before clipping) and "learning_rate".
    """
    model, optimizer, schedule = RoFormer(config.model), make_optimizer(config), _schedule(config)

    def loss_of(params: Params, batch: Batch) -> Float[Array, ""]:
        estimate = model.apply({"params": params}, batch["mixture"])
        target = batch["targets"][..., : estimate.shape[-1]]
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
    """Trains on a set of songs, or goes on from the newest checkpoint in `workdir`, and writes its report.

    Args:
      config: the settings of the run.
      workdir: made if need be. Gets checkpoints/, model.json, config.json, metrics.jsonl, events/ (TensorBoard),
        example/ (wavs of a validation song), spectrogram.png, curve.png and, without `config.data`, songs/.

    Returns:
      The scores of the last validation, as `evaluate.validate` has them; nothing if there are no validation songs.

    Raises:
      InputError: the workdir cannot be written, is in use or holds a run with other settings, the songs cannot be
        used, or the loss is no longer a number.
    """
    workdir = Path(workdir)
    band_layout(config.model)  # sizes that make no model are refused here, before the workdir is claimed
    songs = _open(config) if config.data else None
    if songs:
        batches(songs, TRAIN, _loading(config)).close()  # stems that there are not are refused before the claim, too
    _claim(workdir, config)
    with (
        disk_errors_named(workdir),
        locked(workdir),
        TrainingCheckpoints(workdir, config.model, max_to_keep=config.keep_checkpoints) as checkpoints,
    ):
        songs = songs or _synthesised(config, workdir)
        with batches(songs, TRAIN, _loading(config)) as loader:
            state = _restored(config, checkpoints, loader)
            with TrainingLog(workdir, int(state.step), config.steps) as log:
                return _run(config, state, loader, _Validation(config, songs), checkpoints, log, workdir)


class _Validation:
    """The songs that are validated on, read anew each time: whole songs are too much to keep."""

    def __init__(self, config: TrainingConfig, songs: RecordSet) -> None:
        split = next((split for split in UNSEEN if split in songs.splits), None)
        self._set, self._config = songs, config
        self._songs = songs.songs(split)[: config.validation_songs] if split else ()

    def __bool__(self) -> bool:
        return bool(self._songs)

    def __iter__(self) -> Iterator[WholeSong]:
        model = self._config.model
        for song in self._songs:
            yield WholeSong(*whole_song(self._set, song, model.stems, model.channels, self._config.stems))

    def score(self, params: Params) -> dict[str, float]:
        return validate(
            RoFormer(self._config.model), params, self, chunk_seconds=self._config.validation_chunk_seconds or None
        )


def _run(
    config: TrainingConfig,
    state: TrainState,
    loader: Batches,
    validation: _Validation,
    checkpoints: TrainingCheckpoints,
    log: TrainingLog,
    workdir: Path,
) -> dict[str, float]:
    """The steps that are left, and the report."""
    log.say(_greeting(config, state, workdir))
    if not validation:
        log.say("there are no songs to validate on, so no SDR: prepare some as validation or test, see docs/data.md")
    if validation and log.last_validation() is None:
        log.validation(int(state.step), validation.score(state.params))
    state = _loop(config, state, loader, validation, checkpoints, log)
    if validation and log.curve("validation", "usdr")[-1][0] != int(state.step):  # its record was lost
        log.validation(int(state.step), validation.score(state.params))
    _write_report(workdir, config, state.params, validation, log)
    scores = log.last_validation() or {}
    log.say(_farewell(workdir, scores))
    return scores


def _loop(
    config: TrainingConfig,
    state: TrainState,
    loader: Batches,
    validation: _Validation,
    checkpoints: TrainingCheckpoints,
    log: TrainingLog,
) -> TrainState:
    """Steps until the last one. Log, validation and checkpoint of a step are written in this order."""
    train_step = make_train_step(config)
    first = int(state.step)
    pending: list[Metrics] = []
    clock = _Clock(loader)
    for step in range(first + 1, config.steps + 1):
        state, metrics = train_step(state, next(loader))
        pending.append(metrics)
        clock.steps += 1
        if step == first + 1:
            jax.block_until_ready(metrics)
            log.say(f"compiled and took the first step in {clock.seconds:.1f} s")
            clock.restart()
        last = step == config.steps
        if step % config.log_every == 0 or last:
            means = _means(pending, step)
            log.train(step, **means, **clock.rates())
            pending.clear()
        if validation and (step % config.validate_every == 0 or last):
            log.validation(step, validation.score(state.params))
        if step % config.checkpoint_every == 0 or last:
            checkpoints.save(step, state.params, _training_tree(state, loader))
        if not pending:
            clock.restart()
    return state


class _Clock:
    """Time since the last restart, the steps counted in it, and how much of it was spent waiting for data."""

    def __init__(self, loader: Batches) -> None:
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        self.steps, self._began, self._waited = 0, time.perf_counter(), self._loader.seconds_waited

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def rates(self) -> dict[str, float]:
        seconds = self.seconds
        return {
            "seconds_per_step": seconds / max(1, self.steps),
            "data_wait": (self._loader.seconds_waited - self._waited) / seconds,
        }


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


def _open(config: TrainingConfig) -> RecordSet:
    """The set of songs to train on.

    Raises:
      InputError: it cannot be used, or does not go with the model.
    """
    songs = RecordSet.open(config.data)
    if songs.sample_rate != config.model.sample_rate:
        raise InputError(
            f"{config.data} has {songs.sample_rate} Hz and the model {config.model.sample_rate}: prepare the songs "
            f"with --sample-rate {config.model.sample_rate}"
        )
    return songs


def _synthesised(config: TrainingConfig, workdir: Path) -> RecordSet:
    """The set in the workdir, synthesised if it is not there yet."""
    path = workdir / _SYNTHETIC
    if not is_set(path):
        print(f"synthesising {config.train_songs + config.validation_songs} songs", flush=True)
        prepare_synthetic(
            path,
            train_songs=config.train_songs,
            test_songs=config.validation_songs,
            seconds=config.song_seconds,
            sample_rate=config.model.sample_rate,
            seed=config.seed,
            say=functools.partial(print, flush=True),
        )
    return RecordSet.open(path)


def _loading(config: TrainingConfig) -> Loading:
    return Loading(
        crop_samples=config.crop_samples,
        batch_size=config.batch_size,
        targets=config.model.stems,
        stems=config.stems,
        channels=config.model.channels,
        seed=config.seed,
        workers=config.workers,
        prefetch=config.prefetch,
        augmentation=config.augment,
    )


def _restored(config: TrainingConfig, checkpoints: TrainingCheckpoints, loader: Batches) -> TrainState:
    """The newest saved state, the loader set to go on from there; or the initial one."""
    state = initial_state(config)
    if restored := checkpoints.restore(state.params, _training_tree(state, loader)):
        step, params, training = restored
        loader.set_state(json.loads(training["data"]))
        state = TrainState(jax.device_put(jnp.int32(step), jax.devices()[0]), params, training["opt_state"])
    return state


def _training_tree(state: TrainState, loader: Batches) -> dict[str, Any]:
    """What resuming needs besides the parameters."""
    return {"opt_state": state.opt_state, "data": json.dumps(loader.get_state())}


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
        if isinstance(value, dict):
            _check_same(workdir, there[name], value, prefix=f"{prefix}{name}.")
        elif name not in _FREE_TO_CHANGE and there[name] != value:
            raise InputError(
                f"{workdir} holds a run with {prefix}{name} = {there[name]!r}, not {value!r}: set it back to go on "
                "with that run, or choose another workdir"
            )


def _write_report(
    workdir: Path, config: TrainingConfig, params: Params, validation: _Validation, log: TrainingLog
) -> None:
    """The first validation song, to hear and to see, and the curves of the run."""
    for song in itertools.islice(validation, 1):
        _write_example(workdir, RoFormer(config.model), params, song, config.validation_chunk_seconds or None)
    plots.save_curves(
        workdir / "curve.png",
        loss=log.curve("train", "loss"),
        sdr=log.curve("validation", "usdr"),
        mixture_sdr=(log.last_validation() or {}).get("mixture_usdr"),
    )


def _write_example(
    workdir: Path, model: RoFormer, params: Params, song: WholeSong, chunk_seconds: float | None
) -> None:
    import soundfile

    sample_rate = model.config.sample_rate
    estimates = separate_song(model, params, song.mixture, chunk_seconds=chunk_seconds)
    wavs, panels = {"mixture": song.mixture}, {"Mixture of an unseen song": song.mixture}
    for stem, target, estimate in zip(model.config.stems, song.targets, estimates, strict=True):
        wavs |= {stem: estimate, f"{stem}_reference": target}
        panels[f"{stem.capitalize()}, reference"] = target
        panels[f"{stem.capitalize()}, estimate: SDR {usdr(target, estimate):.1f} dB"] = estimate
    if len(estimates) == 1:
        _, rest = stem_names(model.config)
        wavs[rest] = song.mixture - estimates[0]
    (workdir / "example").mkdir(exist_ok=True)
    for name, audio in wavs.items():
        with replacing(workdir / "example" / f"{name}.wav") as temporary:
            soundfile.write(temporary, audio.T, sample_rate, subtype="FLOAT")  # a difference may exceed full scale
    plots.save_spectrograms(workdir / "spectrogram.png", panels, sample_rate=sample_rate)


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
            f"done: {describe(scores)}" if scores else "done",
            f"listen to {workdir / 'example'}, look at {workdir / 'spectrogram.png'} and {workdir / 'curve.png'}"
            if scores
            else f"look at {workdir / 'curve.png'}",
            "what to do next:",
            f"  wroformer separate song.wav --checkpoint {workdir} --output separated",
            f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)",
        ]
    )
