"""The training step: one pure function, (state, batch) to (state, metrics), jitted once over a mesh.

The loss is the weighted sum of L1, the multi-resolution STFT loss and, with a teacher, the distance between the
model's masks and the teacher's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.sharding import (
    batch_shardings,
    gathered,
    over_examples_and_time,
    replicated,
)
from wroformer_jax.parallel.time_axis import TimeAxis
from wroformer_jax.training.distillation import Masks, compared_frames, mask_distance, teacher_masks
from wroformer_jax.training.losses import l1, multi_resolution_stft_loss
from wroformer_jax.training.optimizer import make_optimizer, schedule, trained_mask
from wroformer_jax.training.state import Batch, Teacher, TrainState, state_shardings, time_of

Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]

# A young average follows quickly: its decay is at most (1 + step) / (_EMA_WARMUP + step).
_EMA_WARMUP = 10.0

_TINY = 1e-10  # so that ratios are finite
_SILENT = 1e-8  # mean square, -80 dB of full scale


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
LossAndGradients = Callable[[Params, Batch, Params | None], tuple[tuple[Array, Metrics], Params]]


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

    The batch is cut into `config.optimizer.accumulate` parts, one after the other; all is the mean over them.
    """
    value_and_grad = jax.value_and_grad(_loss(config, mesh, teacher), has_aux=True)
    if config.optimizer.accumulate == 1:
        return value_and_grad

    def accumulated(params: Params, batch: Batch, teacher_params: Params | None) -> tuple[Any, Params]:
        # Every device has its share of each part: consecutive rows, which lie together, go to different parts.
        parts = jax.tree.map(
            lambda rows: rows.reshape(-1, config.optimizer.accumulate, *rows.shape[1:]).swapaxes(0, 1), dict(batch)
        )

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(params, part, teacher_params)), None

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(value_and_grad, params, jax.tree.map(lambda rows: rows[0], parts), teacher_params),
        )
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda leaf: leaf / config.optimizer.accumulate, total)

    return accumulated


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
    model, weights, mixture = RoFormer(config.model, time), config.loss.weights, batch["mixture"]
    estimate, *masks = model.apply({"params": params}, mixture, method="stems_and_masks")
    target = batch["targets"][..., : estimate.shape[-1]]
    parts = {
        "l1": l1(estimate, target, time=time),
        "stft": multi_resolution_stft_loss(
            estimate,
            target,
            stft_n_fft=config.model.stft_n_fft,
            windows=config.loss.windows,
            hop=config.loss.hop,
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
    loss = sum(getattr(weights, name) * value for name, value in parts.items())
    return loss, {**parts, **_decibels(target, jax.lax.stop_gradient(estimate), time)}


def _trained_norm(config: TrainingConfig, gradients: Params) -> Float[Array, ""]:
    trained = trained_mask(config, gradients)
    return optax.global_norm(
        [leaf for leaf, counts in zip(jax.tree.leaves(gradients), jax.tree.leaves(trained), strict=True) if counts]
    )


def _averaged(config: TrainingConfig, ema: Params | None, params: Params, step: Int[Array, ""]) -> Params | None:
    if ema is None:
        return None
    decay = jnp.minimum(config.optimizer.ema, (1.0 + step) / (_EMA_WARMUP + step))
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
    there = 1.0 if time.is_whole else jnp.arange(samples) < time.samples_to_end(samples)
    signal = time.sum(jnp.sum(target * target * there, axis=(-2, -1)))
    noise = time.sum(jnp.sum(jnp.square(target - estimate) * there, axis=(-2, -1))) + _TINY
    heard = signal > _SILENT * target.shape[-2] * time.total_samples(samples)
    decibels = jnp.where(heard, 10.0 * jnp.log10(jnp.where(heard, signal, 1.0) / noise), 0.0)
    return {"decibels": jnp.mean(decibels), "heard": jnp.mean(heard.astype(jnp.float32))}
