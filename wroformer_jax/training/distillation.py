"""Mask-level distillation (arXiv 2510.25745): a student's masks held to those of a frozen full-attention teacher.

The teacher hears windows of some seconds, whatever the student's length: its cost is quadratic in theirs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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

# What the masks of two models must have in common to be compared bin by bin.
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
    """The masks of a frozen model, which hears `audio` one window after the other; no gradient flows through them.

    Args:
      teacher: the model.
      params: its parameters.
      audio: mixtures.
      window_samples: what the teacher hears at once, whole hops; audio that is no longer is heard at once. It divides
        the samples if these are not the whole recording.
      time: what lies beyond the audio at hand.

    Returns:
      Masks of the frames that `compared_frames` has for this length, as many as the windows have hops, and one more
      for audio that is heard at once. A part of a window at the end is left out.
    """

    def masks_of(part: Float[Array, "batch channel part"]) -> Masks:
        return jax.lax.stop_gradient(Masks(*teacher.apply({"params": params}, part, method="masks")))

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
      counts: which of the teacher's frames count, see `compared_frames`.
      time: what lies beyond the frames at hand.
    """
    frames = len(counts)
    differences = (ours[..., :frames, :] - theirs for ours, theirs in zip(student, teacher, strict=True))
    moduli = modulus(*differences)
    values = float(math.prod(moduli.shape) // frames)  # of a frame
    return time.sum(jnp.sum(moduli * counts[:, None])) / (values * time.sum(jnp.sum(jnp.asarray(counts))))


def compared_frames(
    config: ModelConfig, samples: int, window_samples: int, *, time: TimeAxis = WHOLE
) -> Bool[Array | np.ndarray, " frame"]:
    """Which frames of `teacher_masks` may be compared.

    Not those whose STFT reaches over a border between two windows: there the teacher hears a reflection where the
    student hears the music. Nor those of a window that reaches over the end of the recording.

    Args:
      config: the settings of the model.
      samples: of audio at hand.
      window_samples: what the teacher hears at once. It divides `samples` if these are not the whole recording.
      time: what lies beyond the audio at hand.
    """
    hop = config.stft_hop_length
    if time.is_whole and samples <= window_samples:
        return np.ones(1 + samples // hop, bool)
    count, frames = samples // window_samples, window_samples // hop
    reach = math.ceil(config.stft_n_fft / 2 / hop)
    # Of the last window, too: its end is a border unless the audio ends there.
    interior = np.arange(frames) < frames - reach + 1
    if time.is_whole:
        counts = np.tile(interior, (count, 1))
        counts[1:, :reach] = False
        return counts.reshape(-1)
    windows = jnp.arange(count)[:, None]
    is_first = (time.first_frame(samples // hop) == 0) & (windows == 0)
    is_there = (windows + 1) * window_samples <= time.samples_to_end(samples)
    return (is_there & interior & (is_first | (np.arange(frames) >= reach))).reshape(-1)
