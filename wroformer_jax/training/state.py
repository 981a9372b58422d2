"""The state of a training run: its shapes, its shardings, and how it begins."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from wroformer_jax.config.groups import (
    CheckpointsConfig,
    LoadingConfig,
    LoggingConfig,
    OptimizerConfig,
    ValidationConfig,
)
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params, init_params, logical_axes
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.context_parallel import cut_time, padded_samples
from wroformer_jax.parallel.mesh import num_time_parts
from wroformer_jax.parallel.sharding import (
    batch_shardings,
    mirrored_shardings,
    param_shardings,
    replicated,
    spread,
)
from wroformer_jax.parallel.time_axis import TimeAxis
from wroformer_jax.training.optimizer import make_optimizer

Batch = dict[str, Float[Array, "batch *stem channel sample"]]


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    step: Int[Array, ""]
    params: Params
    ema: Params | None  # moving average of the parameters, None without
    opt_state: optax.OptState
    skipped: Int[Array, ""]  # steps that changed no parameter because their loss or gradient was not finite
    skipped_in_a_row: Int[Array, ""]


def params_to_use(state: TrainState) -> Params:
    """The parameters of the trained model: the moving average if there is one."""
    return state.params if state.ema is None else state.ema


class Teacher(NamedTuple):
    """A frozen model, whose masks the student learns."""

    model: RoFormer
    params: Params


def model_shardings(model: RoFormer, mesh: Mesh | AbstractMesh) -> Params:
    """Returns the shardings of a model's parameters, a nested dict of `NamedSharding`."""
    return param_shardings(abstract_params(model), logical_axes(model), mesh)


def state_shardings(config: TrainingConfig, mesh: Mesh) -> TrainState:
    """Returns a TrainState of shardings, which say how the state is spread over the mesh."""
    model = RoFormer(config.model)
    params, whole = model_shardings(model, mesh), replicated(mesh)
    shapes = abstract_params(model)
    opt_state = mirrored_shardings(jax.eval_shape(make_optimizer(config, shapes).init, shapes), params, mesh)
    shardings: tuple[Any, ...] = (whole, params, params if config.optimizer.ema else None, opt_state, whole, whole)
    return TrainState(*shardings)


def initial_state(config: TrainingConfig, mesh: Mesh, params: Params | None = None) -> TrainState:
    """Returns the state of step 0. It is made in place: no device ever holds more than its part.

    Args:
      config: the settings of the run.
      mesh: the devices to hold it.
      params: parameters to start from, on the host; None for random ones from the seed.
    """
    random_params, start = _jitted_start(computation_of(config), mesh)
    if params is None:
        return start(random_params())
    return start(jax.tree.map(spread, params, state_shardings(config, mesh).params))


def computation_of(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings, with those reset to their defaults that change neither the step nor the state of step 0.

    Compiled functions are cached by the result, so runs in one process that differ only in these settings compile once.
    """
    return config.with_changes(
        profile_steps=(),
        loading=dataclasses.asdict(LoadingConfig()),
        validation=dataclasses.asdict(ValidationConfig()),
        checkpoints=dataclasses.asdict(CheckpointsConfig()),
        logging=dataclasses.asdict(LoggingConfig()),
        optimizer={"max_skipped": OptimizerConfig.max_skipped},
    )


@functools.lru_cache(maxsize=2)
def _jitted_start(config: TrainingConfig, mesh: Mesh) -> tuple[Callable[[], Params], Callable[[Params], TrainState]]:
    """Returns two jitted functions: to random parameters, and from parameters to the state of step 0."""
    model, shardings = RoFormer(config.model), state_shardings(config, mesh)
    random_params = jax.jit(lambda: init_params(model, config.seed), out_shardings=shardings.params)
    return random_params, jax.jit(lambda params: _start(config, params), out_shardings=shardings)


@functools.lru_cache(maxsize=2)
def abstract_state(config: TrainingConfig, mesh: Mesh) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(lambda p: _start(config, p), abstract_params(RoFormer(config.model)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(config, mesh),
    )


def time_of(config: TrainingConfig, mesh: Mesh | AbstractMesh) -> TimeAxis:
    """Returns how the time of the examples is spread over the mesh: whole on each device, or cut into parts.

    Raises:
      InputError: the examples are too short for that many parts.
    """
    multiple = config.loss.hop
    longest, parts = max(config.loss.windows), num_time_parts(mesh)
    if config.loss.weights.masks:  # a part consists of whole windows of the teacher
        multiple = math.lcm(multiple, config.teacher_samples)
        if parts > 1 and config.crop_samples < config.teacher_samples:
            raise InputError(
                f"seconds is {config.seconds:g}, less than teacher_seconds = {config.teacher_seconds:g}: where time is "
                f"cut over devices (mesh.seq = {parts}) the teacher gets whole windows only, and would get none"
            )
    return cut_time(config.model, config.crop_samples, parts, multiple=multiple, longest_window=longest)


def batch_shapes(config: TrainingConfig, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays of a batch on all devices together. Where time is cut, its end is padded."""
    samples = padded_samples(time_of(config, mesh), config.crop_samples)
    mixture = (config.batch_size, config.model.channels, samples)
    return {"mixture": mixture, "targets": (mixture[0], config.model.num_stems, *mixture[1:])}


def abstract_batch(config: TrainingConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a batch."""
    shardings = batch_shardings(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[name])
        for name, shape in batch_shapes(config, mesh).items()
    }


def _start(config: TrainingConfig, params: Params) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema else None
    return TrainState(zero, params, ema, make_optimizer(config, params).init(params), zero, zero)
