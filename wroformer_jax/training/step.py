"""The training step: one pure function from (state, batch) to (state, metrics), jitted once over a mesh.

The loss is the weighted sum of L1, the multi-resolution STFT loss and, with a teacher, the distance between the
model's masks and the teacher's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.implementations import has_kernels, settled
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
from wroformer_jax.training.state import Batch, Teacher, TrainState, computation_of, state_shardings, time_of

Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]

# A young moving average follows quickly: its decay is at most (1 + step) / (_EMA_WARMUP + step).
_EMA_WARMUP = 10.0

_TINY = 1e-10  # so that ratios are finite
_SILENT = 1e-8  # mean square, -80 dB of full scale


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
LossAndGradients = Callable[[Params, Batch, Params | None], tuple[tuple[Array, Metrics], Params]]


def make_train_step(config: TrainingConfig, mesh: Mesh, teacher: Teacher | None = None) -> TrainStep:
    """Returns the jitted step. It takes over the memory of the state (donation), which cannot be used afterwards.

    The batch has "mixture" (batch, channel, sample) and "targets" (batch, stem, channel, sample) on the mesh, see
    `parallel.sharding.to_global`. The metrics are "loss" and its parts by name, "sdr" (dB, the mean over the examples
    and stems of the batch whose target is not silent), "gradient_norm" (before clipping), "learning_rate", "skipped"
    and "skipped_in_a_row".

    Args:
      config: the settings of the run.
      mesh: the devices.
      teacher: its parameters are on the mesh; None without one.
    """
    step = _jitted_step(computation_of(config), mesh, teacher.model.config if teacher else None)
    params = teacher.params if teacher else None
    return lambda state, batch: step(state, batch, params)


@functools.lru_cache(maxsize=2)
def _jitted_step(
    config: TrainingConfig, mesh: Mesh, teacher: ModelConfig | None
) -> Callable[[TrainState, Batch, Params | None], tuple[TrainState, Metrics]]:
    """Cached, so that a process that trains twice with the same settings compiles once."""
    return jax.jit(
        build_train_step(config, mesh, RoFormer(teacher) if teacher else None),
        in_shardings=(state_shardings(config, mesh), batch_shardings(mesh), None),
        out_shardings=(state_shardings(config, mesh), replicated(mesh)),
        donate_argnums=0,
    )


def build_train_step(
    config: TrainingConfig, mesh: Mesh, teacher: RoFormer | None = None
) -> Callable[[TrainState, Batch, Params | None], tuple[TrainState, Metrics]]:
    """Returns the step as a pure function of the state, the batch and the teacher's parameters, not jitted."""
    gradients_of, updated = loss_and_gradients(config, mesh, teacher), build_update(config)

    def train_step(state: TrainState, batch: Batch, teacher_params: Params | None) -> tuple[TrainState, Metrics]:
        (loss, parts), gradients = gradients_of(state.params, batch, teacher_params)
        return updated(state, {"loss": loss, **parts}, gradients)

    return train_step


def build_update(config: TrainingConfig) -> Callable[[TrainState, Metrics, Params], tuple[TrainState, Metrics]]:
    """Returns the update after the gradients: a pure function from (state, metrics, gradients) to (state, metrics)."""
    optimizer = make_optimizer(config, abstract_params(RoFormer(config.model)))
    learning_rate = schedule(config)

    @jax.named_scope("optimizer")
    def update(state: TrainState, measured: Metrics, gradients: Params) -> tuple[TrainState, Metrics]:
        norm = _trained_norm(config, gradients)
        finite = jnp.isfinite(measured["loss"]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        changed: Any = (params, _averaged(config, state.ema, params, state.step), opt_state)
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
    """Returns a function from (parameters, batch, teacher's parameters) to ((loss, its parts and the SDR), gradients).

    It is not jitted. It works on `config.optimizer.accumulate` parts of the batch, one after the other, and returns the
    means over them.
    """
    platform = mesh.devices.flat[0].platform
    config = dataclasses.replace(config, model=settled(config.model, platform))
    teacher = teacher and teacher.clone(config=settled(teacher.config, platform))
    value_and_grad = jax.value_and_grad(_loss(config, mesh, teacher), has_aux=True)
    if config.optimizer.accumulate == 1:
        return value_and_grad

    def accumulated(params: Params, batch: Batch, teacher_params: Params | None) -> tuple[Any, Params]:
        # Consecutive rows, which are on the same device, go to different parts: each device has its share of each part.
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
    """Returns a function from (parameters, batch, teacher's parameters) to (loss, its parts and the SDR)."""
    time = time_of(config, mesh)
    local = functools.partial(_local_loss, config, teacher, time)
    # XLA cannot spread a kernel over devices by itself.
    if not time.is_whole or (has_kernels(config.model, teacher and teacher.config) and mesh.size > 1):
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
    """The loss of this device's examples over their whole length, and its parts and the sums for the SDR."""
    model, weights, mixture = RoFormer(config.model, time), config.loss.weights, batch["mixture"]
    outputs: Any = model.apply({"params": params}, mixture, method="stems_and_masks")
    estimate, *masks = outputs
    target = batch["targets"][..., : estimate.shape[-1]]
    places = config.model.places_at_once or 0
    with jax.named_scope("loss"):
        parts = {
            "l1": l1(estimate, target, time=time),
            "stft": multi_resolution_stft_loss(
                estimate,
                target,
                stft_n_fft=config.model.stft_n_fft,
                windows=config.loss.windows,
                hop=config.loss.hop,
                time=time,
                # `places_at_once` counts places of the residual stream, which have `dim` values each.
                values_at_once=places * config.model.dim // (target.shape[1] * target.shape[2]),
            ),
        }
    if teacher is not None:
        assert teacher_params is not None  # they come with the teacher
        window = config.teacher_samples
        with jax.named_scope("teacher"):
            theirs = teacher_masks(teacher, teacher_params, mixture, window_samples=window, time=time)
        with jax.named_scope("loss"):
            counts = compared_frames(config.model, mixture.shape[-1], window, time=time)
            parts["masks"] = mask_distance(Masks(*masks), theirs, counts, time=time)
    loss: Any = sum(getattr(weights, name) * value for name, value in parts.items())
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


@jax.named_scope("loss")
def _decibels(
    target: Float[Array, "batch stem channel sample"],
    estimate: Float[Array, "batch stem channel sample"],
    time: TimeAxis,
) -> Metrics:
    """Returns "decibels", the mean SDR over examples and stems, and "heard", the share of targets that are not silent.

    A silent target has no SDR and counts as 0 dB in the mean; dividing by "heard" leaves it out.
    """
    samples = target.shape[-1]
    there = 1.0 if time.is_whole else jnp.arange(samples) < time.samples_to_end(samples)
    signal = time.sum(jnp.sum(target * target * there, axis=(-2, -1)))
    noise = time.sum(jnp.sum(jnp.square(target - estimate) * there, axis=(-2, -1))) + _TINY
    heard = signal > _SILENT * target.shape[-2] * time.total_samples(samples)
    decibels = jnp.where(heard, 10.0 * jnp.log10(jnp.where(heard, signal, 1.0) / noise), 0.0)
    return {"decibels": jnp.mean(decibels), "heard": jnp.mean(heard.astype(jnp.float32))}
