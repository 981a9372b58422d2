"""uSDR and SI-SDR: their definitions, and where they are undefined."""

import math

import numpy as np
import pytest

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.metrics import mean_defined, si_sdr, usdr


def noise(seed, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((2, 10000))).astype(np.float32)


def orthogonal(seed, reference):
    """Noise that is orthogonal to the reference and has the same energy."""
    other = noise(seed).astype(np.float64)
    other -= np.sum(other * reference) / np.sum(reference.astype(np.float64) ** 2) * reference
    return (other * np.sqrt(np.sum(reference.astype(np.float64) ** 2) / np.sum(other**2))).astype(np.float32)


@pytest.mark.parametrize("decibels", [-20.0, 0.0, 7.5, 60.0])
def test_usdr_is_the_ratio_of_energies(decibels):
    reference = noise(0)
    estimate = reference + 10 ** (-decibels / 20) * orthogonal(1, reference)
    assert usdr(reference, estimate) == pytest.approx(decibels, abs=1e-3)
    assert si_sdr(reference, estimate) == pytest.approx(decibels, abs=1e-3)


# The definitions, over whole arrays in float64.


def plain_usdr(reference, estimate):
    return 10 * np.log10(np.sum(reference**2) / np.sum((estimate - reference) ** 2))


def plain_si_sdr(reference, estimate):
    target = np.sum(reference * estimate) / np.sum(reference**2) * reference
    return 10 * np.log10(np.sum(target**2) / np.sum((estimate - target) ** 2))


@pytest.mark.parametrize("seconds", [0.01, 1.0, 3.7])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("error", [1e-5, 0.03, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0])
def test_usdr_and_si_sdr_follow_the_definitions_within_1e_4_db(seconds, channels, error, scale):
    """With loud and quiet seconds, pauses, and recordings that end within a second."""
    samples = round(seconds * 44100)
    rng = np.random.default_rng(0)
    envelope = np.interp(np.arange(samples), [0, 50_000, 90_000, 200_000], [0.01, 1, 0, 0.1])
    reference = (0.1 * envelope * rng.standard_normal((channels, samples))).astype(np.float32)
    reference[:, samples // 3 : samples // 2] = 0
    estimate = (scale * reference + 0.1 * error * rng.standard_normal((channels, samples))).astype(np.float32)
    pair = (reference.astype(np.float64), estimate.astype(np.float64))
    assert usdr(reference, estimate) == pytest.approx(plain_usdr(*pair), abs=1e-4)
    assert si_sdr(reference, estimate) == pytest.approx(plain_si_sdr(*pair), abs=1e-4)


def test_usdr_counts_all_channels_and_samples_together():
    reference = np.array([[3.0, 0.0], [0.0, 1.0]], np.float32)
    estimate = np.array([[3.0, 1.0], [0.0, 1.0]], np.float32)
    assert usdr(reference, estimate) == pytest.approx(10.0)


def test_si_sdr_ignores_the_scale_and_usdr_does_not():
    reference = noise(0)
    estimate = reference + 0.1 * orthogonal(1, reference)
    for scale in (0.25, 8.0):
        assert si_sdr(reference, scale * estimate) == pytest.approx(20.0, abs=1e-3)
        assert usdr(reference, scale * estimate) < 3


def test_silent_estimate():
    assert usdr(noise(0), np.zeros_like(noise(0))) == pytest.approx(0.0)
    assert math.isnan(si_sdr(noise(0), np.zeros_like(noise(0))))


@pytest.mark.parametrize("metric", [usdr, si_sdr])
def test_silent_reference_is_undefined(metric):
    silent = np.zeros_like(noise(0))
    assert math.isnan(metric(silent, noise(0)))
    assert math.isnan(metric(silent, silent))


@pytest.mark.parametrize("metric", [usdr, si_sdr])
def test_an_equal_estimate_has_a_finite_score(metric):
    assert metric(noise(0), noise(0)) == pytest.approx(140.0, abs=1)


def test_orthogonal_estimate_has_a_finite_si_sdr():
    reference = np.array([[1.0, 0.0]], np.float32)
    assert si_sdr(reference, np.array([[0.0, 1.0]], np.float32)) == pytest.approx(-140.0)


def test_quiet_and_long_tracks_keep_their_precision():
    reference = np.tile(noise(0, 1e-6), (1, 100))
    assert usdr(reference, 0.5 * reference) == pytest.approx(20 * math.log10(2), abs=1e-5)


def test_the_mean_leaves_out_undefined_values():
    assert mean_defined([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean_defined([math.nan]))
    assert math.isnan(mean_defined([]))


@pytest.mark.parametrize("metric", [usdr, si_sdr])
def test_bad_input_is_named(metric):
    with pytest.raises(InputError, match=r"\(2, 10000\).*\(2, 9999\)"):
        metric(noise(0), noise(0)[:, 1:])
    broken = noise(0)
    broken[1, 17] = math.nan
    with pytest.raises(InputError, match="estimate holds samples that are NaN"):
        metric(noise(0), broken)
    with pytest.raises(InputError, match="reference holds samples that are NaN"):
        metric(broken, noise(0))
