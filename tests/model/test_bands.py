"""Bands, their stacking, and the mean over bands that share a bin."""

import jax
import numpy as np
import pytest
from librosa import filters
from support.helpers import tiny_config

from wroformer_jax.config.model import DEFAULT_FREQS_PER_BANDS, ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.bands import average_bins, band_layout, split_bins

MEL, BAND_SPLIT = ModelConfig(), ModelConfig(band_scheme="band_split")


def test_the_published_mel_bands():
    layout = band_layout(MEL)
    assert len(layout.bins) == 60
    assert sum(layout.widths) == 1979
    assert max(layout.widths) == 130
    bank = filters.mel(sr=44100, n_fft=2048, n_mels=60) > 0
    bank[0, 0] = bank[-1, -1] = True
    for row, bins in zip(bank, layout.bins, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), bins)


@pytest.mark.parametrize("sample_rate", [4000, 22050, 48000])
@pytest.mark.parametrize(("num_bands", "n_fft"), [(4, 512), (12, 1000), (24, 2048)])
def test_mel_bands_are_where_filters_of_librosa_are_positive(sample_rate, num_bands, n_fft):
    config = tiny_config(num_bands=num_bands, sample_rate=sample_rate, stft_n_fft=n_fft, stft_win_length=n_fft)
    bank = filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=num_bands) > 0
    bank[0, 0] = bank[-1, -1] = True
    for row, bins in zip(bank, band_layout(config).bins, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), bins)


def test_the_default_band_split_is_disjoint_and_complete():
    layout = band_layout(BAND_SPLIT)
    assert layout.widths == DEFAULT_FREQS_PER_BANDS
    np.testing.assert_array_equal(np.concatenate(layout.bins), np.arange(1025))


@pytest.mark.parametrize("config", [MEL, BAND_SPLIT, tiny_config(num_bands=12, stft_n_fft=512, stft_win_length=512)])
def test_groups_hold_every_band_once_with_little_padding(config):
    layout = band_layout(config)
    assert [band for group in layout.groups for band in group.bands] == list(range(config.num_bands))
    for group in layout.groups:
        for row, band in enumerate(group.bands):
            np.testing.assert_array_equal(group.bins[row][group.present[row]], layout.bins[band])
    assert layout.present.size < 1.3 * sum(layout.widths)


def averaging_matrix(layout):
    matrix = np.zeros((max(bins[-1] for bins in layout.bins) + 1, layout.present.size))
    matrix[layout.bin_of_slot[layout.present], np.flatnonzero(layout.present)] = 1
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("config", [MEL, BAND_SPLIT])
def test_averaging_and_its_gradient_are_the_mean_over_bands(config):
    layout = band_layout(config)
    matrix = averaging_matrix(layout)
    rng = np.random.default_rng(0)
    places = rng.standard_normal((2, 3, layout.present.size)).astype(np.float32)
    bins, pull = jax.vjp(lambda places: average_bins(places, layout), jax.numpy.asarray(places))
    np.testing.assert_allclose(bins, places @ matrix.T, atol=1e-6)
    cotangent = rng.standard_normal(bins.shape).astype(np.float32)
    np.testing.assert_allclose(pull(jax.numpy.asarray(cotangent))[0], cotangent @ matrix, atol=1e-6)


def test_split_bins_gives_plane_major_features_and_zero_padding():
    layout = band_layout(MEL)
    planes = np.arange(4 * 1025, dtype=np.float32).reshape(1, 4, 1, 1025) + 1
    group = layout.groups[0]
    features = np.asarray(split_bins(jax.numpy.asarray(planes), group))[0, 0].reshape(group.size, 4, group.width)
    for row, band in enumerate(group.bands):
        width = layout.widths[band]
        np.testing.assert_array_equal(features[row, :, :width], planes[0, :, 0, layout.bins[band]].T)
        assert not features[row, :, width:].any()


def test_bands_that_do_not_cover_are_refused():
    with pytest.raises(InputError, match=r"band \d+ has no bin, use fewer bands"):
        band_layout(tiny_config(stft_n_fft=256, stft_win_length=256, stft_hop_length=64))
