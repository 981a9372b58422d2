"""The transform and its inverse against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.helpers import relative_error

from wroformer_jax.model.stft import inverse_stft, stft

SIZES = [(n_fft, hop, n_fft) for n_fft in (2048, 4096) for hop in (441, 512)] + [(2048, 441, 1764)]


def signal(samples):
    return np.random.default_rng(samples).uniform(-1, 1, (2, samples)).astype(np.float32)


@pytest.mark.parametrize("samples", [2049, 20_001, 30_869])
@pytest.mark.parametrize(("n_fft", "hop", "win"), SIZES)
def test_both_ways_equal_torch(n_fft, hop, win, samples):
    audio = signal(max(samples, n_fft // 2 + 1))
    sizes = {"n_fft": n_fft, "hop_length": hop, "win_length": win}
    expected = torch.stft(torch.tensor(audio), **sizes, window=torch.hann_window(win), return_complex=True)
    real, imag = stft(jnp.asarray(audio), **sizes)
    assert relative_error(real + 1j * imag, expected.numpy().swapaxes(-1, -2)) < 1e-5

    # Masked as by a model: the result is not the spectrum of any signal, and bin 0 and Nyquist have imaginary parts.
    mask = np.random.default_rng(0).standard_normal((2, *real.shape), np.float32)
    masked = (real + 1j * imag) * (mask[0] + 1j * mask[1])
    back = inverse_stft(masked.real, masked.imag, **sizes)
    expected = torch.istft(torch.tensor(np.array(masked)).mT, **sizes, window=torch.hann_window(win))
    assert relative_error(back, expected.numpy()) < 1e-5


@pytest.mark.parametrize(("n_fft", "hop", "win"), SIZES)
def test_the_inverse_gives_the_samples_back(n_fft, hop, win):
    audio = signal(33_333)
    sizes = {"n_fft": n_fft, "hop_length": hop, "win_length": win}
    back = np.asarray(inverse_stft(*stft(jnp.asarray(audio), **sizes), **sizes))
    assert back.shape[-1] == hop * (audio.shape[-1] // hop)
    np.testing.assert_allclose(back, audio[:, : back.shape[-1]], atol=1e-6, rtol=0)


def test_music_that_sets_in_after_silence_has_torch_s_small_values():
    """The values of a frame that sees only the first samples of the window depend on how the window was rounded."""
    audio = np.zeros((1, 22_050), np.float32)
    audio[:, 8000:] = signal(14_050)[:1]
    frame = (8000 + 1024) // 441 - 4
    sizes = {"n_fft": 2048, "hop_length": 441, "win_length": 2048}
    expected = torch.stft(torch.tensor(audio), **sizes, window=torch.hann_window(2048), return_complex=True)
    first = next(t for t in range(expected.shape[-1]) if expected[0, :, t].abs().max() > 0)
    assert first <= frame + 4
    real, imag = stft(jnp.asarray(audio), **sizes)
    assert relative_error((real + 1j * imag)[0, first], expected[0, :, first].numpy()) < 1e-4


def test_the_gradient_of_a_round_trip_is_the_identity_inside():
    sizes = {"n_fft": 512, "hop_length": 100, "win_length": 512}
    audio = signal(3000)
    weights = np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)

    def weighted(audio):
        return jnp.vdot(inverse_stft(*stft(audio, **sizes), **sizes), weights)

    gradient = jax.grad(weighted)(jnp.asarray(audio))
    np.testing.assert_allclose(gradient[:, 600:-600], weights[:, 600:-600], atol=1e-5)
