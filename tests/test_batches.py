"""Training batches: a pure function of the seed and the step."""

import itertools

import numpy as np
import pytest

from wroformer_jax.data.batches import (
    TRAIN,
    VALIDATION,
    SongPool,
    synthesise_pool,
    training_batch,
    training_batches,
)

SIZES = {"batch_size": 3, "crop_samples": 1000, "remix": 0.5}


@pytest.fixture(scope="module")
def pool():
    return synthesise_pool(1, TRAIN, num_songs=3, seconds=0.5, sample_rate=44100, channels=2)


def test_shapes(pool):
    batch = training_batch(pool, 0, 0, **SIZES)
    assert batch.keys() == {"mixture", "vocals"}
    assert all(audio.shape == (3, 2, 1000) and audio.dtype == np.float32 for audio in batch.values())


def test_batches_are_a_pure_function_of_seed_and_step(pool):
    from_start = list(itertools.islice(training_batches(pool, 7, 0, **SIZES), 6))
    resumed = list(itertools.islice(training_batches(pool, 7, 4, **SIZES), 2))
    for one, other in zip(from_start[4:], resumed, strict=True):
        np.testing.assert_array_equal(one["mixture"], other["mixture"])
        np.testing.assert_array_equal(one["vocals"], other["vocals"])
    assert not np.array_equal(from_start[0]["mixture"], from_start[1]["mixture"])
    other_seed = training_batch(pool, 8, 0, **SIZES)
    assert not np.array_equal(from_start[0]["mixture"], other_seed["mixture"])


def numbered_pool():
    """Song s holds s + 1 in its vocals, and -(s + 1) in its instrumental."""
    numbers = np.arange(1, 5, dtype=np.float32)[:, None, None] * np.ones((1, 2, 50), np.float32)
    return SongPool(vocals=numbers, instrumental=-numbers)


@pytest.mark.parametrize(("remix", "together"), [(0.0, True), (1.0, False)])
def test_remix_takes_the_band_from_another_song(remix, together):
    batch = training_batch(numbered_pool(), 0, 0, batch_size=64, crop_samples=10, remix=remix)
    ratio = -(batch["mixture"] - batch["vocals"])[:, 0, 0] / batch["vocals"][:, 0, 0]
    largest_gain = 10 ** (8 / 20)  # one stem 4 dB up, the other 4 dB down
    alike = (ratio > 1 / largest_gain - 1e-3) & (ratio < largest_gain + 1e-3)
    assert alike.all() == together


def test_crops_reach_both_ends_and_fit_the_shortest_song():
    ramp = np.arange(12, dtype=np.float32) * np.ones((1, 2, 1), np.float32)
    pool = SongPool(vocals=ramp, instrumental=np.zeros_like(ramp))
    starts = set()
    for step in range(50):
        vocals = training_batch(pool, 0, step, batch_size=4, crop_samples=10, remix=0.0)["vocals"]
        starts |= {round(float(x[0, 0] / (x[0, 1] - x[0, 0]))) for x in vocals}
    assert starts == {0, 1, 2}
    whole = training_batch(pool, 0, 0, batch_size=1, crop_samples=12, remix=0.0)["vocals"]
    assert whole.shape == (1, 2, 12)


def test_splits_have_no_song_in_common_and_mono_is_the_mean(pool):
    unseen = synthesise_pool(1, VALIDATION, num_songs=3, seconds=0.5, sample_rate=44100, channels=2)
    assert not any(np.array_equal(a, b) for a in pool.vocals for b in unseen.vocals)
    mono = synthesise_pool(1, TRAIN, num_songs=1, seconds=0.5, sample_rate=44100, channels=1)
    np.testing.assert_allclose(mono.vocals[0, 0], pool.vocals[0].mean(axis=0), atol=1e-7)
