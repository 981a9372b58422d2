"""Validation: whole unseen songs through the model, and their SDR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from wroformer_jax.evaluation.metrics import mean_defined, usdr
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.separation.arrays import separate

Estimates = Float32[np.ndarray, "stem channel sample"]


class WholeSong(NamedTuple):
    """A song and what is to be found in it."""

    mixture: Float32[np.ndarray, "channel sample"]
    targets: Float32[np.ndarray, "stem channel sample"]  # in the order of the model's stems


Heard = Callable[[WholeSong, Estimates], None]


class SongScores(NamedTuple):
    """uSDR of a song in dB by stem, NaN where the stem is silent."""

    estimates: list[float]
    mixture: list[float]  # taken as the estimate: what doing nothing gives


def score_song(
    model: RoFormer, params: Any, song: WholeSong, *, chunk_seconds: float | None, heard: Heard | None = None
) -> SongScores:
    """Separates a song, and scores what comes out.

    Args:
      model: the model.
      params: its parameters.
      song: at the model's rate.
      chunk_seconds: what the model hears at once, None for the whole song.
      heard: is given the song and the model's stems of it, so that nobody need separate it again.
    """
    estimates = separate_song(model, params, song.mixture, chunk_seconds=chunk_seconds)
    if heard:
        heard(song, estimates)
    return SongScores(
        [usdr(target, estimate) for target, estimate in zip(song.targets, estimates, strict=True)],
        [usdr(target, song.mixture) for target in song.targets],
    )


def mean_scores(stems: Sequence[str], songs: Sequence[SongScores]) -> dict[str, float]:
    """Mean uSDR over songs, in dB; NaN for a stem that is silent in every song.

    Args:
      stems: of the model.
      songs: their scores, one at least.

    Returns:
      "STEM_usdr" for each stem; "usdr", their mean; "mixture_usdr", that of the mixtures taken as estimates; and
      "improvement", the difference of these two.
    """
    means, mixtures = (
        [mean_defined(values) for values in zip(*by_song, strict=True)]
        for by_song in ([song.estimates for song in songs], [song.mixture for song in songs])
    )
    mean, mixture = mean_defined(means), mean_defined(mixtures)
    return {
        **{f"{stem}_usdr": value for stem, value in zip(stems, means, strict=True)},
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
