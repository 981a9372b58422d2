"""How training examples are changed at random: the settings of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wroformer_jax.config import checks
from wroformer_jax.config.checks import check_probability, checked_tuple, is_number
from wroformer_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How often, and how far, the stems of training examples are changed. A probability of 0 switches a change off.

    Every stem of every example is drawn for by itself. The defaults are those in public use for this kind of model:
    the configs and docs/augmentations.md of ZFTurbo/Music-Source-Separation-Training (MSST below, whose names are
    in brackets). There, too, a stem is flipped first, then mixed up, then scaled.

    Raises:
      InputError: a field is no probability, or no range of factors.
    """

    # Probability that the stems of an example come from different songs, each at a place of its own; else all from
    # one place of one song. MSST: always (dataset types 1 to 3); so does Demucs.
    remix: float = 1.0
    # Probability of a factor, and the range it is drawn from uniformly [loudness: true, loudness_min, loudness_max].
    gain: float = 1.0
    gain_range: tuple[float, float] = (0.5, 1.5)
    # Probabilities that one, and that a further, crop of the same stem from other songs is mixed in [mixup_probs].
    # The stem is then the mean of them, each times a factor of its own [mixup_loudness_min, mixup_loudness_max]. MSST
    # has such a factor for stems that nothing is mixed into, too, so that its gain is often the product of two.
    mixup: tuple[float, ...] = (0.2, 0.02)
    mixup_range: tuple[float, float] = (0.5, 1.5)
    channel_swap: float = 0.5  # probability that left and right change places [channel_shuffle]
    polarity: float = 0.5  # probability of a change of sign [random_polarity]
    time_inversion: float = 0.1  # probability that a crop is played backwards [random_inverse]
    # Probability that one target of an example, drawn among the targets, is silent. MSST has nothing like it. A few
    # per cent teach a model to stay silent where there is nothing to separate.
    silence: float = 0.0
    # Probability that a crop of a silent passage (no second of it above -60 dB RMS) is drawn again, up to ten times.
    # MSST: always [min_mean_abs: 0.001, which is -60 dB], and never in its newest configs [0.000].
    skip_silence: float = 1.0

    def __post_init__(self) -> None:
        for name in ("remix", "gain", "channel_swap", "polarity", "time_inversion", "silence", "skip_silence"):
            check_probability(name, getattr(self, name))
        for name in ("mixup", "gain_range", "mixup_range"):
            object.__setattr__(self, name, checked_tuple(name, getattr(self, name), "numbers"))
        for probability in self.mixup:
            check_probability("mixup", probability)
        for name in ("gain_range", "mixup_range"):
            value = getattr(self, name)
            if len(value) != 2 or not all(map(is_number, value)) or not 0 < value[0] <= value[1]:
                raise InputError(f"{name} is {value!r}, expected the least and the largest factor, both above 0")

    @classmethod
    def none(cls) -> Augmentation:
        """No augmentation at all: crops of songs as they are."""
        return cls(
            0.0, 0.0, mixup=(), channel_swap=0.0, polarity=0.0, time_inversion=0.0, silence=0.0, skip_silence=0.0
        )

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types; `from_dict` reads it back."""
        return checks.to_dict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Augmentation:
        """Builds it from plain values; fields that are not given get their defaults.

        Raises:
          InputError: a field is unknown (the nearest known name is suggested) or has an impossible value.
        """
        return checks.from_dict(cls, fields, what="field of the augmentation")
