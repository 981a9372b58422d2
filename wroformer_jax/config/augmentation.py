"""Settings of the random changes to training examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wroformer_jax.config import checks
from wroformer_jax.config.checks import check_probability, checked_tuple, is_number
from wroformer_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How often and how much the stems of training examples are changed. A probability of 0 switches a change off.

    The changes of each stem of each example are drawn independently. The defaults are the public ones for this kind of
    model, from the configs and docs/augmentations.md of ZFTurbo/Music-Source-Separation-Training (MSST below; its names
    are in brackets). The order is theirs, too: a stem is flipped, then mixed up, then scaled.

    Raises:
      InputError: a field is not a probability, or not a range of factors.
    """

    # Probability that the stems of an example come from different songs and times; otherwise all come from the same
    # seconds of one song. MSST and Demucs: 1 (MSST's dataset types 1 to 3).
    remix: float = 1.0
    # Probability that a stem is scaled, and the range of the factor [loudness: true, loudness_min, loudness_max].
    gain: float = 1.0
    gain_range: tuple[float, float] = (0.5, 1.5)
    # Probabilities that one crop, and a further one, of the same stem of other songs is mixed in [mixup_probs]. The
    # stem is then the mean of them, each scaled by its own factor [mixup_loudness_min, mixup_loudness_max]. MSST also
    # scales stems that nothing is mixed into, so its gain is often a product of two factors.
    mixup: tuple[float, ...] = (0.2, 0.02)
    mixup_range: tuple[float, float] = (0.5, 1.5)
    channel_swap: float = 0.5  # probability that left and right change places [channel_shuffle]
    polarity: float = 0.5  # probability of a change of sign [random_polarity]
    time_inversion: float = 0.1  # probability that a crop is played backwards [random_inverse]
    # Probability that one target of an example, chosen at random, is silent. A few per cent teach a model to stay
    # silent where it has nothing to separate. MSST has no such change.
    silence: float = 0.0
    # Probability that a crop of a silent passage (no second of it above -60 dB RMS) is drawn again, up to ten times.
    # MSST: 1 [min_mean_abs: 0.001, which is -60 dB], and 0 in its newest configs [0.000].
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
        """Returns settings that change nothing: crops of songs as they are."""
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
