"""Validation: whole unseen songs through the model, and their SDR."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from wroformer_jax.metrics import mean_defined, usdr
from wroformer_jax.model import RoFormer
from wroformer_jax.separation import separate

Estimates = Float32[np.ndarray, "stem channel sample"]


class WholeSong(NamedTuple):
    """A song and what is to be found in it."""

    mixture: Float32[np.ndarray, "channel sample"]
    targets: Float32[np.ndarray, "stem channel sample"]  # in the order of the model's stems


Heard = Callable[[WholeSong, Estimates], None]


def validate(
    model: RoFormer,
    params: Any,
    songs: Iterable[WholeSong],
    *,
    chunk_seconds: float | None,
    heard: Heard | None = None,
) -> dict[str, float]:
    """Mean uSDR over the songs, in dB; NaN for a stem that is silent in every song.

    Args:
      model: the model.
      params: its parameters.
      songs: at the model's rate; one at a time is looked at.
      chunk_seconds: what the model hears at once, None for whole songs.
      heard: is given each song and the model's stems of it, so that nobody need separate it again.

    Returns:
      "STEM_usdr" for each stem of the model; "usdr", their mean; "mixture_usdr", that of the mixtures taken as
      estimates (what doing nothing gives); and "improvement", the difference of these two.
    """
    stems = model.config.stems
    estimated: dict[str, list[float]] = {stem: [] for stem in stems}
    untouched: dict[str, list[float]] = {stem: [] for stem in stems}
    for song in songs:
        estimates = separate_song(model, params, song.mixture, chunk_seconds=chunk_seconds)
        if heard:
            heard(song, estimates)
        for stem, target, estimate in zip(stems, song.targets, estimates, strict=True):
            estimated[stem].append(usdr(target, estimate))
            untouched[stem].append(usdr(target, song.mixture))
    by_stem = {stem: mean_defined(values) for stem, values in estimated.items()}
    mean, mixture = mean_defined(by_stem.values()), mean_defined(map(mean_defined, untouched.values()))
    return {
        **{f"{stem}_usdr": value for stem, value in by_stem.items()},
        "usdr": mean,
        "mixture_usdr": mixture,
        "improvement": mean - mixture,
    }


def separate_song(
    model: RoFormer, params: Any, mixture: Float32[np.ndarray, "channel sample"], *, chunk_seconds: float | None
) -> Estimates:
    """The model's stems of a song at the model's rate."""
    stems = separate(model, params, mixture, sample_rate=model.config.sample_rate, chunk_seconds=chunk_seconds)
    return np.stack([stems[stem] for stem in model.config.stems])
