"""The training step: one pure function, (state, batch) to (state, metrics), jitted once over a mesh.

The loss is the weighted sum of L1, the multi-resolution STFT loss and, with a teacher, the distance between the
model's masks and the teacher's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.distillation import Masks, compared_frames, mask_distance, teacher_masks
from wroformer_jax.errors import InputError
from wroformer_jax.losses import l1, multi_resolution_stft_loss
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params, init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.optimizer import make_optimizer, schedule, trained_mask
from wroformer_jax.parallel.context_parallel import cut_time, padded_samples
from wroformer_jax.parallel.mesh import num_time_parts
from wroformer_jax.parallel.sharding import (
    batch_shardings,
    gathered,
    mirrored_shardings,
    over_examples_and_time,
    param_shardings,
    replicated,
    spread,
)
from wroformer_jax.parallel.time_axis import TimeAxis

Batch = dict[str, Float[Array, "batch *stem channel sample"]]
Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]

# A young average follows quickly: its decay is at most (1 + step) / (_EMA_WARMUP + step).
_EMA_WARMUP = 10.0

_TINY = 1e-10  # so that ratios are finite
_SILENT = 1e-8  # mean square, -80 dB of full scale


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: Params
    ema: Params | None  # moving average of the parameters, None without
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # steps that changed nothing, because their loss or gradient was not finite
    skipped_in_a_row: Int[Array, ""]


class Teacher(NamedTuple):
    """A frozen model to learn masks from."""

    model: RoFormer
    params: Params


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
LossAndGradients = Callable[[Params, Batch, Params | None], tuple[tuple[Array, Metrics], Params]]


def state_shardings(config: TrainingConfig, mesh: Mesh) -> TrainState:
    """How the state lies on the mesh: a TrainState of shardings."""
    model = RoFormer(config.model)
    params, whole = param_shardings(model, mesh), replicated(mesh)
    shapes = abstract_params(model)
    opt_state = mirrored_shardings(jax.eval_shape(make_optimizer(config, shapes).init, shapes), params, mesh)
    return TrainState(whole, params, params if config.ema else None, opt_state, whole, whole)


def initial_state(config: TrainingConfig, mesh: Mesh, params: Params | None = None) -> TrainState:
    """The state of step 0, made in its place: no device ever holds more than its part.

    Args:
      config: the settings.
      mesh: where it is to lie.
      params: to start from, on the host; None for random ones from the seed.
    """
    model, shardings = RoFormer(config.model), state_shardings(config, mesh)
    if params is None:
        placed = jax.jit(lambda: init_params(model, config.seed), out_shardings=shardings.params)()
    else:
        placed = jax.tree.map(spread, params, shardings.params)
    return jax.jit(lambda p: _start(config, p), out_shardings=shardings)(placed)


def abstract_state(config: TrainingConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, computing nothing."""
    shapes = jax.eval_shape(lambda p: _start(config, p), abstract_params(RoFormer(config.model)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(config, mesh),
    )


def time_of(config: TrainingConfig, mesh: Mesh | AbstractMesh) -> TimeAxis:
    """How the examples' time lies on the mesh: whole, or cut over devices.

    Raises:
      InputError: it cannot be cut over so many.
    """
    multiple = config.loss_hop
    longest, parts = max(config.loss_windows), num_time_parts(mesh)
    if config.loss_weights["masks"]:  # a part is made of whole windows of the teacher
        multiple = math.lcm(multiple, config.teacher_samples)
        if parts > 1 and config.crop_samples < config.teacher_samples:
            raise InputError(
                f"seconds is {config.seconds:g}, less than teacher_seconds = {config.teacher_seconds:g}: where time is "
                f"cut over devices (mesh.seq = {parts}) the teacher hears whole windows only, and would hear none"
            )
    return cut_time(config.model, config.crop_samples, parts, multiple=multiple, longest_window=longest)


def batch_shapes(config: TrainingConfig, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a batch, all devices together. Where time is cut, its end is padding."""
    samples = padded_samples(time_of(config, mesh), config.crop_samples)
    mixture = (config.batch_size, config.model.channels, samples)
    return {"mixture": mixture, "targets": (mixture[0], config.model.num_stems, *mixture[1:])}


def abstract_batch(config: TrainingConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch."""
    shardings = batch_shardings(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[name])
        for name, shape in batch_shapes(config, mesh).items()
    }


def make_train_step(config: TrainingConfig, mesh: Mesh, teacher: Teacher | None = None) -> TrainStep:
    """The jitted step. The state given to it is donated: use it no more.

    The batch has "mixture", (batch, channel, sample), and "targets", (batch, stem, channel, sample), on the mesh (see
    `sharding.to_global`). Metrics: "loss" and its parts by name, "sdr" (dB, the mean over the batch's examples and
    stems whose target is not silent), "gradient_norm" (before clipping), "learning_rate", "skipped" and
    "skipped_in_a_row".

    Args:
      config: the settings.
      mesh: the devices.
      teacher: its parameters lie on the mesh already.
    """
    step = jax.jit(
        build_train_step(config, mesh, teacher.model if teacher else None),
        in_shardings=(state_shardings(config, mesh), batch_shardings(mesh), None),
        out_shardings=(state_shardings(config, mesh), replicated(mesh)),
        donate_argnums=0,
    )
    params = teacher.params if teacher else None
    return lambda state, batch: step(state, batch, params)


def build_train_step(
    config: TrainingConfig, mesh: Mesh, teacher: RoFormer | None = None
) -> Callable[[TrainState, Batch, Params | None], tuple[TrainState, Metrics]]:
    """The step as a pure function of the state, the batch and the teacher's parameters, not jitted."""
    gradients_of, updated = loss_and_gradients(config, mesh, teacher), build_update(config)

    def train_step(state: TrainState, batch: Batch, teacher_params: Params | None) -> tuple[TrainState, Metrics]:
        (loss, parts), gradients = gradients_of(state.params, batch, teacher_params)
        return updated(state, {"loss": loss, **parts}, gradients)

    return train_step


def build_update(config: TrainingConfig) -> Callable[[TrainState, Metrics, Params], tuple[TrainState, Metrics]]:
    """What follows the gradients, as a pure function of the state, what was measured so far, and the gradients."""
    optimizer = make_optimizer(config, abstract_params(RoFormer(config.model)))
    learning_rate = schedule(config)

    def update(state: TrainState, measured: Metrics, gradients: Params) -> tuple[TrainState, Metrics]:
        norm = _trained_norm(config, gradients)
        finite = jnp.isfinite(measured["loss"]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        changed = (params, _averaged(config, state.ema, params, state.step), opt_state)
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), changed, (state.params, state.ema, state.opt_state)
        )
        skip = 1 - finite.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            skipped=state.skipped + skip,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        )
        metrics = {
            **measured,
            "gradient_norm": norm,
            # The optimiser does not count skipped steps.
            "learning_rate": jnp.asarray(learning_rate(state.step - state.skipped)),
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return update


def loss_and_gradients(config: TrainingConfig, mesh: Mesh, teacher: RoFormer | None = None) -> LossAndGradients:
    """(parameters, batch, the teacher's parameters) to ((loss, its parts and the SDR), gradients), not jitted.

    The batch is cut into `config.accumulate` parts, one after the other; all is the mean over them.
    """
    value_and_grad = jax.value_and_grad(_loss(config, mesh, teacher), has_aux=True)
    if config.accumulate == 1:
        return value_and_grad

    def accumulated(params: Params, batch: Batch, teacher_params: Params | None) -> tuple[Any, Params]:
        # Every device has its share of each part: consecutive rows, which lie together, go to different parts.
        parts = jax.tree.map(
            lambda rows: rows.reshape(-1, config.accumulate, *rows.shape[1:]).swapaxes(0, 1), dict(batch)
        )

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(params, part, teacher_params)), None

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(value_and_grad, params, jax.tree.map(lambda rows: rows[0], parts), teacher_params),
        )
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda leaf: leaf / config.accumulate, total)

    return accumulated


def _start(config: TrainingConfig, params: Params) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.ema else None
    return TrainState(zero, params, ema, make_optimizer(config, params).init(params), zero, zero)


def _loss(config: TrainingConfig, mesh: Mesh, teacher: RoFormer | None) -> Callable:
    """(parameters, batch, parameters of the teacher) to (loss, its parts and the SDR)."""
    time = time_of(config, mesh)
    local = functools.partial(_local_loss, config, teacher, time)
    if not time.is_whole:
        local = over_examples_and_time(local, mesh)

    def loss_of(params: Params, batch: Batch, teacher_params: Params | None) -> tuple[Array, Metrics]:
        loss, parts = local(gathered(params, mesh), dict(batch), gathered(teacher_params, mesh))
        decibels, heard = parts.pop("decibels"), parts.pop("heard")
        return loss, {**parts, "sdr": decibels / jnp.maximum(heard, _TINY)}

    return loss_of


def _local_loss(
    config: TrainingConfig,
    teacher: RoFormer | None,
    time: TimeAxis,
    params: Params,
    batch: Batch,
    teacher_params: Params | None,
) -> tuple[Array, Metrics]:
    """The loss of the examples at hand, over all of time, its parts, and what the SDR is made of."""
    model, weights, mixture = RoFormer(config.model, time), config.loss_weights, batch["mixture"]
    estimate, *masks = model.apply({"params": params}, mixture, method="stems_and_masks")
    target = batch["targets"][..., : estimate.shape[-1]]
    parts = {
        "l1": l1(estimate, target, time=time),
        "stft": multi_resolution_stft_loss(
            estimate,
            target,
            stft_n_fft=config.model.stft_n_fft,
            windows=config.loss_windows,
            hop=config.loss_hop,
            time=time,
            # A place of the residual stream is `dim` values.
            values_at_once=config.model.places_at_once * config.model.dim // (target.shape[1] * target.shape[2]),
        ),
    }
    if teacher is not None:
        window = config.teacher_samples
        theirs = teacher_masks(teacher, teacher_params, mixture, window_samples=window, time=time)
        counts = compared_frames(config.model, mixture.shape[-1], window, time=time)
        parts["masks"] = mask_distance(Masks(*masks), theirs, counts, time=time)
    loss = sum(weights[name] * value for name, value in parts.items())
    return loss, {**parts, **_decibels(target, jax.lax.stop_gradient(estimate), time)}


def _trained_norm(config: TrainingConfig, gradients: Params) -> Float[Array, ""]:
    trained = trained_mask(config, gradients)
    return optax.global_norm(
        [leaf for leaf, counts in zip(jax.tree.leaves(gradients), jax.tree.leaves(trained), strict=True) if counts]
    )


def _averaged(config: TrainingConfig, ema: Params | None, params: Params, step: Int[Array, ""]) -> Params | None:
    if ema is None:
        return None
    decay = jnp.minimum(config.ema, (1.0 + step) / (_EMA_WARMUP + step))
    return jax.tree.map(lambda mean, new: mean + (1.0 - decay) * (new - mean), ema, params)


def _decibels(
    target: Float[Array, "batch stem channel sample"],
    estimate: Float[Array, "batch stem channel sample"],
    time: TimeAxis,
) -> Metrics:
    """The SDR in the mean over examples and stems, 0 for silent targets, and the part of them that are not silent.

    A silent target has no SDR, and what stands for one would drown the others in the mean.
    """
    samples = target.shape[-1]
    there = 1.0 if time.is_whole else jnp.arange(samples) < time.samples_left(samples)
    signal = time.total(jnp.sum(target * target * there, axis=(-2, -1)))
    noise = time.total(jnp.sum(jnp.square(target - estimate) * there, axis=(-2, -1))) + _TINY
    heard = signal > _SILENT * target.shape[-2] * time.num_samples(samples)
    decibels = jnp.where(heard, 10.0 * jnp.log10(jnp.where(heard, signal, 1.0) / noise), 0.0)
    return {"decibels": jnp.mean(decibels), "heard": jnp.mean(heard.astype(jnp.float32))}
