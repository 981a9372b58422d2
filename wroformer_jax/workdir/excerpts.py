"""Excerpts of validation songs, the same ones at every validation, so that people hear and see a model learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.evaluation.validation_songs import Estimates, ValidationSong

SONGS = 2  # number of songs that get an excerpt, from the first
SECONDS = 8.0  # length of an excerpt
_GRID = 0.1  # seconds between two possible starts of an excerpt

Sound = Float32[np.ndarray, "channel sample"]


class Excerpt(NamedTuple):
    """A part of a song, with its references and estimates by stem."""

    sample_rate: int  # Hz
    mixture: Sound
    references: dict[str, Sound]
    estimates: dict[str, Sound]


def excerpt_of(config: ModelConfig, song: ValidationSong, estimates: Estimates) -> Excerpt:
    """Returns the part of a song where the true stems of the model are loudest, whatever the estimates are.

    Args:
      config: the settings of the model.
      song: at the model's rate.
      estimates: the model's estimates of its stems.
    """
    samples = round(SECONDS * config.sample_rate)
    start = loudest_start(song.targets, samples, grid=round(_GRID * config.sample_rate))
    part = slice(start, start + samples)
    # Copies, so that the memory of the whole song can be freed.
    references, parts = (
        {stem: audio[:, part].copy() for stem, audio in zip(config.stems, stems, strict=True)}
        for stems in (song.targets, estimates)
    )
    return Excerpt(config.sample_rate, song.mixture[:, part].copy(), references, parts)


def loudest_start(stems: Float32[np.ndarray, "stem channel sample"], samples: int, *, grid: int) -> int:
    """Returns the first sample of the part with the most energy; 0 if the stems are no longer than a part.

    Args:
      stems: their energies are added up.
      samples: length of the part.
      grid: samples between two possible starts.
    """
    blocks = stems.shape[-1] // grid
    count = samples // grid
    if blocks <= count:
        return 0
    energy = np.zeros(blocks)
    for row in stems.reshape(-1, stems.shape[-1]):  # one row at a time, to save memory
        parts = row[: blocks * grid].reshape(blocks, grid)
        energy += np.einsum("bn,bn->b", parts, parts)
    sums = np.cumsum(np.concatenate([[0.0], energy]))
    return int(np.argmax(sums[count:] - sums[:-count])) * grid
