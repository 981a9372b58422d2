"""This package's side of compare.py: the forward pass and the training step, compiled and ready to be timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from recipes import read_recipe

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.parallel.sharding import to_global
from wroformer_jax.separation.forward import apply_model, apply_model_to_whole, on_this_device
from wroformer_jax.training.attention import with_checked_attention
from wroformer_jax.training.state import batch_shapes, initial_state
from wroformer_jax.training.step import make_train_step

LONGEST_CHUNK = 10.0  # seconds; longer audio is separated in pieces, as with --chunk-seconds whole


def noise(config: ModelConfig, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns a mixture (1, channel, sample) and its stems (1, stem, channel, sample), from a fixed seed."""
    rng = np.random.default_rng(0)
    shape = (1, config.num_stems + 1, config.channels, round(seconds * config.sample_rate))
    parts = 0.1 * rng.standard_normal(shape, dtype=np.float32)
    return parts.sum(axis=1), parts[:, 1:]


def as_full(config: ModelConfig) -> ModelConfig:
    """Returns the settings of the model of that size with full attention."""
    return ModelConfig.from_dict({**config.to_dict(), "time_mixer": "full", "num_sinks": 0, "zero_dc": False})


def inference(config: ModelConfig, seconds: float, params: Any = None) -> Callable[[], Any]:
    """Returns a function that separates `seconds` of audio once, as `wroformer separate` does it."""
    model = on_this_device(RoFormer(dataclasses.replace(config, remat="none")))
    params = init_params(model, 0) if params is None else params
    audio, _ = noise(config, seconds)
    apply = apply_model if seconds <= LONGEST_CHUNK else apply_model_to_whole
    return lambda: jax.block_until_ready(apply(model, params, audio))


def training(config: ModelConfig, seconds: float, *, remat: bool) -> Callable[[], Any]:
    """Returns a function that takes one step of AdamW on one example; its loss is the public one."""
    config = dataclasses.replace(config, remat="block" if remat else "none")
    run = training_config(config, seconds)
    mesh = make_mesh(run.mesh)
    run, _ = with_checked_attention(run, mesh, None)
    state, step = initial_state(run, mesh), make_train_step(run, mesh)
    mixture, targets = noise(config, seconds)
    batch = to_global({"mixture": mixture, "targets": targets}, mesh, batch_shapes(run, mesh))

    def once() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((state, metrics))

    return once


def training_config(config: ModelConfig, seconds: float) -> TrainingConfig:
    """Returns the settings of a run that trains this model without a moving average, one example at a time."""
    return read_recipe("quickstart.py").with_changes(
        model=config.to_dict(),
        seconds=seconds,
        synthetic={"song_seconds": max(10.0, seconds)},
        batch_size=1,
        optimizer={"ema": 0.0, "accumulate": 1},
        loss={"hop": 147},
        mesh={"data": 1, "fsdp": 1, "seq": 1},
    )
