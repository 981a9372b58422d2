"""Runs the model on NumPy arrays: chunk by chunk, or a whole recording in one pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from wroformer_jax.config.model import ModelConfig, forward_only
from wroformer_jax.errors import InputError
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.model.trial import checked
from wroformer_jax.parallel.context_parallel import can_cut_time
from wroformer_jax.separation.over_devices import separate_over_devices
from wroformer_jax.separation.overlap_add import Run, pad_end

Params = Mapping[str, Any]

WHOLE_PLACES = 65536  # frames x bands that are computed at a time when a recording is separated in one pass


def on_this_device(model: Any) -> Any:
    """Returns a RoFormer with its settings settled for this process's devices; any other model as it is.

    The form of attention is tried on the first of them, see `model.trial.checked`.
    """
    if isinstance(model, RoFormer):
        return model.clone(config=checked(model.config, jax.local_devices()[0]))
    return model


def in_pieces(config: ModelConfig) -> ModelConfig:
    """Returns the settings for separating a recording in one pass: the model's, in pieces and without remat.

    Args:
      config: the model's settings, settled. Their `places_at_once` is kept if it is set.
    """
    return forward_only(config, config.places_at_once or WHOLE_PLACES)


def in_one_pass(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], run: Run, config: ModelConfig
) -> Iterator[Float32[np.ndarray, "stem channel _"]]:
    """Separates a whole stream in one pass; pads it to whole hops, which is what the model returns."""
    mixture = np.concatenate(list(blocks), axis=-1)
    samples = mixture.shape[-1]
    yield run(pad_end(mixture, whole_hops(config, max(samples, config.min_samples)))[None])[0, ..., :samples]


def model_runner(apply: Callable[[np.ndarray], Any], config: ModelConfig, *, channels: int, tta: bool) -> Run:
    """Returns the model as a function of NumPy arrays that have the mixture's channels.

    Args:
      apply: the model with its parameters: (batch, channel, sample) to (batch, stem, channel, sample).
      config: the model's settings.
      channels: number of channels of the mixture.
      tta: whether to average over augmented mixtures, see `separate`.

    Returns:
      The function. It raises an InputError if the model's output is not finite.
    """

    def run(audio: np.ndarray) -> np.ndarray:
        estimate = np.asarray(apply(audio))
        if not np.isfinite(estimate).all():
            raise InputError("the model's output has NaN or infinite samples: its weights are damaged")
        return estimate

    def augmented(audio: np.ndarray) -> np.ndarray:
        if not tta:
            return run(audio)
        estimates = [run(audio), -run(-audio)]
        if channels == config.channels == 2:
            estimates.append(run(audio[:, ::-1])[:, :, ::-1])
        return functools.reduce(np.add, estimates) / np.float32(len(estimates))

    if channels == config.channels:
        return augmented
    if channels == 1:
        return lambda audio: augmented(np.repeat(audio, 2, axis=1)).mean(axis=2, keepdims=True)
    return lambda audio: np.concatenate([augmented(audio[:, i : i + 1]) for i in range(channels)], axis=2)


@functools.partial(jax.jit, static_argnums=0)
def apply_model(
    model: Any, params: Params, audio: Float[jax.Array, "batch channel sample"]
) -> Float[jax.Array, "batch stem channel sample"]:
    """Runs `model.apply`, jitted."""
    return model.apply({"params": params}, audio)


def apply_model_to_whole(
    model: Any, params: Params, audio: Float32[np.ndarray, "batch channel sample"]
) -> Float[jax.Array, "batch stem channel sample"] | Float[np.ndarray, "batch stem channel sample"]:
    """Separates a recording in one pass, piece by piece: memory holds little more than the residual stream.

    If attention is windowed and the recording is long enough, each local device computes its own part of the time. The
    sinks attend to the whole recording in any case.
    """
    if isinstance(model, RoFormer):
        model = RoFormer(in_pieces(settled(model.config)))
        if can_cut_time(model.config, audio.shape[-1], len(jax.local_devices())):
            return separate_over_devices(model, params, audio)
    return apply_model(model, params, audio)


def memory_errors_named(estimates: Iterable[np.ndarray], amount: str) -> Iterator[np.ndarray]:
    """Yields the estimates; turns errors of NumPy and XLA about too little memory into an InputError.

    Args:
      estimates: the estimates.
      amount: names what is separated at once in the message.
    """
    try:
        yield from estimates
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"not enough memory for {amount} at once: use shorter chunks or a smaller batch size"
        ) from error


def whole_hops(config: ModelConfig, samples: int) -> int:
    """Rounds a number of samples up to whole hops."""
    return math.ceil(samples / config.stft_hop_length) * config.stft_hop_length
