"""Training batches cut from a pool of songs held in memory, each a pure function of a seed and a step.

Nothing has to be saved to go on after a restart: the batch of step n is always the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float32

from wroformer_jax.data.synthetic import synthesise_song

# What is drawn from a run's seed: (seed, TRAIN, song), (seed, VALIDATION, song), (seed, BATCHES, step).
TRAIN, VALIDATION, BATCHES = 0, 1, 2

_MAX_GAIN_DB = 4.0

Batch = dict[str, Float32[np.ndarray, "batch channel sample"]]


@dataclasses.dataclass(frozen=True)
class SongPool:
    """Songs of one length as two stems; their sum is the mixture."""

    vocals: Float32[np.ndarray, "song channel sample"]
    instrumental: Float32[np.ndarray, "song channel sample"]


def synthesise_pool(
    seed: int,
    split: int,
    *,
    num_songs: int,
    seconds: float,
    sample_rate: int,
    channels: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> SongPool:
    """Songs number 0 to `num_songs` - 1 of a split of a seed.

    Args:
      seed: of the run.
      split: TRAIN or VALIDATION; the two have no song in common.
      num_songs: how many.
      seconds: length of each.
      sample_rate: Hz.
      channels: 2, or 1 for the mean of the two.
      progress: wraps the iteration over songs, to show how it goes.
    """
    shape = (num_songs, channels, round(seconds * sample_rate))
    pool = SongPool(np.empty(shape, np.float32), np.empty(shape, np.float32))
    for index in progress(range(num_songs)):
        stems = synthesise_song((seed, split, index), seconds, sample_rate)
        if channels == 1:
            stems = {name: audio.mean(axis=0, keepdims=True) for name, audio in stems.items()}
        pool.vocals[index] = stems["vocals"]
        pool.instrumental[index] = stems["drums"] + stems["bass"] + stems["other"]
    return pool


def training_batch(pool: SongPool, seed: int, step: int, *, batch_size: int, crop_samples: int, remix: float) -> Batch:
    """The batch of one step: random crops, each stem at a gain of its own, of "mixture" and "vocals".

    Args:
      pool: the songs, at least `crop_samples` long.
      seed: of the run.
      step: number of the step.
      batch_size: crops.
      crop_samples: length of a crop.
      remix: probability that the instrumental comes from another place than the vocals, any song of the pool.
    """
    rng = np.random.default_rng((seed, BATCHES, step))
    shape = (batch_size, pool.vocals.shape[1], crop_samples)
    vocals, instrumental = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for index in range(batch_size):
        place = _place(rng, pool, crop_samples)
        vocals[index] = _gain(rng) * pool.vocals[place]
        if rng.random() < remix:
            place = _place(rng, pool, crop_samples)
        instrumental[index] = _gain(rng) * pool.instrumental[place]
    return {"mixture": vocals + instrumental, "vocals": vocals}


def training_batches(
    pool: SongPool, seed: int, first_step: int, *, batch_size: int, crop_samples: int, remix: float
) -> Iterator[Batch]:
    """`training_batch` of `first_step`, the next, and so on without end."""
    step = first_step
    while True:
        yield training_batch(pool, seed, step, batch_size=batch_size, crop_samples=crop_samples, remix=remix)
        step += 1


def _place(rng: np.random.Generator, pool: SongPool, crop_samples: int) -> tuple[int, slice, slice]:
    num_songs, _, num_samples = pool.vocals.shape
    song, start = int(rng.integers(num_songs)), int(rng.integers(num_samples - crop_samples + 1))
    return song, slice(None), slice(start, start + crop_samples)


def _gain(rng: np.random.Generator) -> np.float32:
    return np.float32(10 ** (rng.uniform(-_MAX_GAIN_DB, _MAX_GAIN_DB) / 20))
