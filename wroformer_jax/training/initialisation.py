"""What a run starts from: the weights of a checkpoint, and a teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from wroformer_jax.checkpoints import loading
from wroformer_jax.config.model import MEMORY_FIELDS, ModelConfig, forward_only
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import add_windowed_sinks
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.sharding import spread
from wroformer_jax.training.distillation import check_teacher
from wroformer_jax.training.state import Teacher, model_shardings

# How a model is computed, not what its parameters are.
_FREE = ("dtype", "zero_dc", *MEMORY_FIELDS)
# What windowed sinks change in a full-attention model.
_MADE = ("time_mixer", "window", "num_sinks")


def starting_params(config: TrainingConfig) -> Params | None:
    """The parameters of `config.init`, with windowed sinks if the run is to have them; None for random ones.

    Raises:
      InputError: the checkpoint cannot be loaded, or is of another model than `config.model`.
    """
    if not config.init:
        return None
    there, params, _ = _read("init", config.init)
    check_init(there, config)
    if _gets_windows(there, config.model):
        window, num_sinks = config.model.window, config.model.num_sinks
        _, params = add_windowed_sinks(there, params, window=window, num_sinks=num_sinks, seed=config.seed)
    return params


def check_init(there: ModelConfig, config: TrainingConfig) -> None:
    """Raises an InputError if `there`, the model of `config.init`, is not that of the run, nor becomes it by getting
    windowed sinks."""
    free = (*_FREE, *_MADE) if _gets_windows(there, config.model) else _FREE
    # The window is of no meaning to full attention.
    free = free if config.model.time_mixer == "windowed_sink" else (*free, "window")
    ours, theirs = config.model.to_dict(), there.to_dict()
    for name, value in theirs.items():
        if name not in free and ours[name] != value:
            raise InputError(
                f"init {config.init} is a model with {name} = {value!r}, but the config has model.{name} = "
                f"{ours[name]!r}: make them equal"
            )


def frozen_teacher(config: TrainingConfig, mesh: Mesh) -> Teacher | None:
    """The model of `config.teacher`, its parameters spread over the mesh; it computes in bfloat16 if the run does.

    Raises:
      InputError: it cannot be loaded, its masks are not those of such a model, or it hears too little at once.
    """
    if not config.teacher:
        return None
    if config.teacher_samples < config.model.stft_n_fft:
        raise InputError(
            f"teacher_seconds is {config.teacher_seconds}, which is {config.teacher_samples} samples in whole hops: "
            f"the teacher needs an STFT window, {config.model.stft_n_fft} samples, at least"
        )
    there, params, _ = _read("teacher", config.teacher)
    check_teacher(there, config.model)
    there = dataclasses.replace(there, dtype=config.model.dtype, stream_dtype="float32")
    model = RoFormer(forward_only(there, config.model.places_at_once))
    return Teacher(model, jax.tree.map(spread, params, model_shardings(model, mesh)))


def _read(field: str, source: str) -> Any:
    try:
        return loading.read(source)
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def _gets_windows(there: ModelConfig, wanted: ModelConfig) -> bool:
    return there.time_mixer != "windowed_sink" and not there.num_sinks and wanted.time_mixer == "windowed_sink"
