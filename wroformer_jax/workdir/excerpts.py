"""Excerpts of the validation songs, the same ones at every validation, to hear and to see a model learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.evaluation.validation_songs import Estimates, ValidationSong

SONGS = 2  # the first so many songs have an excerpt
SECONDS = 8.0
_GRID = 0.1  # seconds between two places where an excerpt may begin

Sound = Float32[np.ndarray, "channel sample"]


class Excerpt(NamedTuple):
    """A part of a song; references and estimates by stem."""

    sample_rate: int  # Hz
    mixture: Sound
    references: dict[str, Sound]
    estimates: dict[str, Sound]


def excerpt_of(config: ModelConfig, song: ValidationSong, estimates: Estimates) -> Excerpt:
    """The part of a song where the model's stems are loudest, which depends on the true stems alone.

    Args:
      config: the settings of the model.
      song: at the model's rate.
      estimates: what the model makes of it.
    """
    samples = round(SECONDS * config.sample_rate)
    start = loudest_start(song.targets, samples, grid=round(_GRID * config.sample_rate))
    part = slice(start, start + samples)
    # Copies, so that the whole song need not stay in memory.
    references, parts = (
        {stem: audio[:, part].copy() for stem, audio in zip(config.stems, stems, strict=True)}
        for stems in (song.targets, estimates)
    )
    return Excerpt(config.sample_rate, song.mixture[:, part].copy(), references, parts)


def loudest_start(stems: Float32[np.ndarray, "stem channel sample"], samples: int, *, grid: int) -> int:
    """The sample where the part of so many samples begins that has the most energy; 0 if there is no more than that.

    Args:
      stems: whose energies are added up.
      samples: length of the part.
      grid: samples between two places where it may begin.
    """
    blocks = stems.shape[-1] // grid
    count = samples // grid
    if blocks <= count:
        return 0
    energy = np.zeros(blocks)
    for row in stems.reshape(-1, stems.shape[-1]):  # one at a time: squares of a whole song are large
        parts = row[: blocks * grid].reshape(blocks, grid)
        energy += np.einsum("bn,bn->b", parts, parts)
    sums = np.cumsum(np.concatenate([[0.0], energy]))
    return int(np.argmax(sums[count:] - sums[:-count])) * grid
