"""The weights that a run starts from, and its teacher."""

from __future__ import annotations

import dataclasses

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

# Fields that do not concern the parameters: a run may differ in them from the checkpoint that it starts from.
_NOT_PARAMETERS = ("dtype", "zero_dc", *MEMORY_FIELDS)
# Fields of a full-attention model that change when it gets windowed sinks.
_SET_BY_WINDOWS = ("time_mixer", "window", "num_sinks")


def starting_params(config: TrainingConfig) -> Params | None:
    """Returns the parameters of the checkpoint `config.init`, or None if the run starts from random ones.

    A full-attention checkpoint gets windowed sinks if the model of the run has them.

    Raises:
      InputError: the checkpoint cannot be loaded, or its model is not that of the run.
    """
    if not config.init:
        return None
    saved, params = _read("init", config.init)
    check_init(saved, config)
    if _gets_windows(saved, config.model):
        window, num_sinks = config.model.window, config.model.num_sinks
        _, params = add_windowed_sinks(saved, params, window=window, num_sinks=num_sinks, seed=config.seed)
    return params


def check_init(saved: ModelConfig, config: TrainingConfig) -> None:
    """Refuses a checkpoint whose model is neither that of the run nor becomes it by getting windowed sinks.

    Args:
      saved: the settings of the model of `config.init`.
      config: the settings of the run.

    Raises:
      InputError: names the first field that differs.
    """
    may_differ = (*_NOT_PARAMETERS, *_SET_BY_WINDOWS) if _gets_windows(saved, config.model) else _NOT_PARAMETERS
    if config.model.time_mixer != "windowed_sink":  # full attention has no window
        may_differ = (*may_differ, "window")
    ours = config.model.to_dict()
    for name, value in saved.to_dict().items():
        if name not in may_differ and ours[name] != value:
            raise InputError(
                f"init {config.init} is a model with {name} = {value!r}, but the config has model.{name} = "
                f"{ours[name]!r}: make them equal"
            )


def frozen_teacher(config: TrainingConfig, mesh: Mesh) -> Teacher | None:
    """Loads the model of `config.teacher` and spreads its parameters over the mesh; None for a run without a teacher.

    The teacher computes in bfloat16 if the run does.

    Raises:
      InputError: the checkpoint cannot be loaded, its masks cannot be compared with the model's, or its windows are
        shorter than an STFT window.
    """
    if not config.teacher:
        return None
    if config.teacher_samples < config.model.stft_n_fft:
        raise InputError(
            f"teacher_seconds is {config.teacher_seconds}, which is {config.teacher_samples} samples in whole hops: "
            f"the teacher needs an STFT window, {config.model.stft_n_fft} samples, at least"
        )
    saved, params = _read("teacher", config.teacher)
    check_teacher(saved, config.model)
    as_student = {name: getattr(config.model, name) for name in ("dtype", "attention_impl", "frames_at_once")}
    teacher = dataclasses.replace(saved, **as_student, stream_dtype="float32")
    model = RoFormer(forward_only(teacher, config.model.places_at_once))
    return Teacher(model, jax.tree.map(spread, params, model_shardings(model, mesh)))


def _read(field: str, source: str) -> tuple[ModelConfig, Params]:
    try:
        config, params, _ = loading.read(source)
    except InputError as error:
        raise InputError(f"{field}: {error}") from error
    return config, params


def _gets_windows(saved: ModelConfig, wanted: ModelConfig) -> bool:
    """Whether a model of the settings `saved` has to get windowed sinks to become one of the settings `wanted`."""
    return saved.time_mixer != "windowed_sink" and not saved.num_sinks and wanted.time_mixer == "windowed_sink"
