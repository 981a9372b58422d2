"""Draws and applies the random changes of training examples; config/augmentation.py has the settings.

Pure NumPy; no function changes its input. examples.py, which knows the songs, draws from which songs the stems of an
example come (`remix`, `mixup`, `silence`, `skip_silence`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.augmentation import Augmentation

Audio = Float32[np.ndarray, "channel sample"]


@dataclasses.dataclass(frozen=True)
class Change:
    """The changes of a crop."""

    factor: float = 1.0  # negative where the polarity is inverted
    swap_channels: bool = False
    invert_time: bool = False


def draw_changes(augmentation: Augmentation, rng: np.random.Generator) -> tuple[Change, ...]:
    """Draws a stem's changes: one for each crop that is summed to it, which are several if `mixup` adds some."""
    number = 1 + sum(_happens(rng, probability) for probability in augmentation.mixup)
    gain = rng.uniform(*augmentation.gain_range) if _happens(rng, augmentation.gain) else 1.0
    changes = []
    for _ in range(number):
        share = rng.uniform(*augmentation.mixup_range) / number if number > 1 else 1.0
        sign = -1.0 if _happens(rng, augmentation.polarity) else 1.0
        swap, inversion = _happens(rng, augmentation.channel_swap), _happens(rng, augmentation.time_inversion)
        changes.append(Change(sign * gain * share, swap, inversion))
    return tuple(changes)


def apply_change(audio: Audio, change: Change) -> Audio:
    """Returns the changed crop: a new array, or `audio` or a view of it if the factor is 1."""
    if change.swap_channels:
        audio = audio[::-1]
    if change.invert_time:
        audio = audio[:, ::-1]
    return audio if change.factor == 1 else np.float32(change.factor) * audio


def _happens(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)
