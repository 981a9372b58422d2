"""Mask-level distillation (arXiv 2510.25745): a student learns the masks of a frozen full-attention teacher.

The teacher separates windows of a few seconds whatever the student's length, because its cost is quadratic in time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis
from wroformer_jax.training.losses import modulus

# Fields that must agree for the masks of two models to be compared bin by bin.
_SHARED = ("stems", "channels", "sample_rate", "stft_n_fft", "stft_hop_length", "stft_win_length")


class Masks(NamedTuple):
    """Complex masks."""

    real: Float[Array, "batch stem channel frame bin"]
    imag: Float[Array, "batch stem channel frame bin"]


def check_teacher(teacher: ModelConfig, student: ModelConfig) -> None:
    """Raises an InputError if the masks of the two models cannot be compared."""
    for name in _SHARED:
        if getattr(teacher, name) != getattr(student, name):
            raise InputError(
                f"the teacher has {name} = {getattr(teacher, name)!r} and the model {getattr(student, name)!r}: "
                "a teacher needs the model's stems, channels, rate and STFT"
            )


def teacher_masks(
    teacher: RoFormer,
    params: Params,
    audio: Float[Array, "batch channel sample"],
    *,
    window_samples: int,
    time: TimeAxis = WHOLE,
) -> Masks:
    """The masks of a frozen model that separates `audio` one window after the other. They have no gradient.

    Args:
      teacher: the model.
      params: its parameters.
      audio: mixtures.
      window_samples: length of a window, in whole hops. Audio that is no longer is one window. It must divide the
        length of `audio` if that is not the whole recording.
      time: where these samples lie in the recording.

    Returns:
      Masks of the frames that `compared_frames` describes: one for each hop of the windows, and one more if the audio
      is a single window. A part of a window at the end is left out.
    """

    def masks_of(part: Float[Array, "batch channel part"]) -> Masks:
        real_and_imag: Any = teacher.apply({"params": params}, part, method="masks")
        return jax.lax.stop_gradient(Masks(*real_and_imag))

    samples = audio.shape[-1]
    if time.is_whole and samples <= window_samples:
        return masks_of(audio)
    count, frames = samples // window_samples, window_samples // teacher.config.stft_hop_length
    parts = audio[..., : count * window_samples].reshape(*audio.shape[:-1], count, window_samples)
    windows = jax.lax.map(masks_of, jnp.moveaxis(parts, -2, 0))
    # The last frame of a window is the first one of the next.
    return jax.tree.map(
        lambda mask: jnp.moveaxis(mask[..., :frames, :], 0, 3).reshape(
            *mask.shape[1:4], count * frames, mask.shape[-1]
        ),
        windows,
    )


def mask_distance(
    student: Masks, teacher: Masks, counts: Bool[Array | np.ndarray, " frame"], *, time: TimeAxis = WHOLE
) -> Float[Array, ""]:
    """Mean modulus of the difference of two complex masks.

    Args:
      student: masks of at least as many frames as the teacher's.
      teacher: masks.
      counts: which of the teacher's frames are compared, see `compared_frames`.
      time: where these frames lie in the recording.
    """
    frames = len(counts)
    differences = (ours[..., :frames, :] - theirs for ours, theirs in zip(student, teacher, strict=True))
    moduli = modulus(*differences)
    values = float(math.prod(moduli.shape) // frames)  # in a frame
    return time.sum(jnp.sum(moduli * counts[:, None])) / (values * time.sum(jnp.sum(jnp.asarray(counts))))


def compared_frames(
    config: ModelConfig, samples: int, window_samples: int, *, time: TimeAxis = WHOLE
) -> Bool[Array | np.ndarray, " frame"]:
    """True for the frames of `teacher_masks` that can be compared with the student's.

    Frames whose STFT crosses a border between two windows cannot: the teacher gets a reflection of the window there,
    the student the music. Neither can frames of a window that crosses the end of the recording.

    Args:
      config: the settings of the model.
      samples: length of the audio.
      window_samples: length of the teacher's windows. It must divide `samples` if that is not the whole recording.
      time: where these samples lie in the recording.
    """
    hop = config.stft_hop_length
    if time.is_whole and samples <= window_samples:
        return np.ones(1 + samples // hop, bool)
    count, frames = samples // window_samples, window_samples // hop
    reach = math.ceil(config.stft_n_fft / 2 / hop)
    # This holds for the last window, too: its end is a border unless the audio ends there.
    interior = np.arange(frames) < frames - reach + 1
    if time.is_whole:
        counts = np.tile(interior, (count, 1))
        counts[1:, :reach] = False
        return counts.reshape(-1)
    windows = jnp.arange(count)[:, None]
    is_first = (time.first_frame(samples // hop) == 0) & (windows == 0)
    is_there = (windows + 1) * window_samples <= time.samples_to_end(samples)
    return (is_there & interior & (is_first | (np.arange(frames) >= reach))).reshape(-1)
