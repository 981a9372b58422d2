"""Scores of a model on whole songs that are held in memory, as validation during training needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from wroformer_jax.evaluation.metrics import mean_defined, usdr
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.separation.arrays import separate

Estimates = Float32[np.ndarray, "stem channel sample"]


class ValidationSong(NamedTuple):
    """A song at the model's sample rate, with the true stems."""

    mixture: Float32[np.ndarray, "channel sample"]
    targets: Float32[np.ndarray, "stem channel sample"]  # in the order of the model's stems


OnSeparated = Callable[[ValidationSong, Estimates], None]


class SongScores(NamedTuple):
    """uSDR of one song in dB, one value per stem; NaN where the true stem is silent."""

    estimates: list[float]
    mixture: list[float]  # of the unprocessed mixture, taken as the estimate of each stem


def separate_and_score(
    model: RoFormer,
    params: Any,
    song: ValidationSong,
    *,
    chunk_seconds: float | None,
    on_separated: OnSeparated | None = None,
) -> SongScores:
    """Separates a song and scores the estimates.

    Args:
      model: the model.
      params: its parameters.
      song: the song to separate.
      chunk_seconds: length of the chunks that the model gets; None for the whole song at once.
      on_separated: called with the song and its estimates, so that callers need not separate it again.
    """
    estimates = separate_song(model, params, song.mixture, chunk_seconds=chunk_seconds)
    if on_separated:
        on_separated(song, estimates)
    return SongScores(
        [usdr(target, estimate) for target, estimate in zip(song.targets, estimates, strict=True)],
        [usdr(target, song.mixture) for target in song.targets],
    )


def mean_scores(stems: Sequence[str], songs: Sequence[SongScores]) -> dict[str, float]:
    """Averages uSDR over songs, in dB; NaN for a stem that is silent in every song.

    Args:
      stems: names of the model's stems.
      songs: the scores of at least one song.

    Returns:
      "STEM_usdr" for each stem; "usdr", the mean over stems; "mixture_usdr", the same mean for the unprocessed
      mixtures; and "improvement", "usdr" minus "mixture_usdr".
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
    """Returns the model's estimates of a mixture that has the model's sample rate."""
    stems = separate(model, params, mixture, sample_rate=model.config.sample_rate, chunk_seconds=chunk_seconds)
    return np.stack([stems[stem] for stem in model.config.stems])
