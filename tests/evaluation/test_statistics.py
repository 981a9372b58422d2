"""Summaries over songs and their bootstrap intervals."""

import math

import numpy as np
import pytest

from wroformer_jax.evaluation.statistics import METRICS, RESAMPLES, bootstrap_interval, summarise


def scores_of(num_songs, seed=0):
    return np.random.default_rng(seed).normal(5, 2, num_songs)


@pytest.mark.parametrize("num_songs", [5, 50, 150])
@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_an_interval_leaves_out_a_fortieth_of_the_resamples_at_each_end(num_songs, statistic):
    values = scores_of(num_songs)
    rng = np.random.default_rng(1)  # other random numbers than those of the interval
    resampled = np.array([statistic(rng.choice(values, num_songs)) for _ in range(RESAMPLES)])
    # The share that a quantile of RESAMPLES draws leaves out has this standard deviation, and so has the share of the
    # RESAMPLES draws here; five of the standard deviations of their difference.
    tolerance = 5 * math.sqrt(2 * 0.025 * 0.975 / RESAMPLES)
    low, high = bootstrap_interval(values, statistic)
    # Medians take few different values, so a share of the resamples equals the bound.
    for outside, inside in ((resampled < low, resampled > low), (resampled > high, resampled < high)):
        assert outside.mean() <= 0.025 + tolerance
        assert inside.mean() <= 0.975 + tolerance


def test_an_interval_of_a_mean_is_near_that_of_the_normal_distribution():
    values = scores_of(50)
    half = 1.96 * values.std() / np.sqrt(50)
    assert bootstrap_interval(values, np.mean) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_the_seed_fixes_the_interval():
    values = scores_of(50)
    assert bootstrap_interval(values, np.mean) == bootstrap_interval(values, np.mean, seed=0)
    assert bootstrap_interval(values, np.mean) != bootstrap_interval(values, np.mean, seed=1)


def test_the_interval_of_a_median_holds_the_median():
    values = scores_of(50)
    low, high = bootstrap_interval(values, np.median)
    assert low < np.median(values) < high


def test_equal_songs_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full(3, 4.5), np.mean) == [4.5, 4.5]


@pytest.mark.parametrize("num_songs", [0, 1])
def test_fewer_than_two_songs_have_no_interval(num_songs):
    assert bootstrap_interval(scores_of(num_songs), np.mean) is None


def test_a_summary_leaves_out_undefined_scores():
    rows = {song: dict.fromkeys(METRICS, usdr) for song, usdr in {"a": 1.0, "b": math.nan, "c": 4.0}.items()}
    rows["a"]["leakage"] = rows["c"]["leakage"] = math.nan
    summary = summarise(rows)
    assert summary["usdr"] == {
        "songs": 2, "mean": 2.5, "median": 2.5, "mean_interval": [1.0, 4.0], "median_interval": [1.0, 4.0],
    }  # fmt: skip
    assert summary["leakage"] == {
        "songs": 0, "mean": None, "median": None, "mean_interval": None, "median_interval": None,
    }  # fmt: skip
