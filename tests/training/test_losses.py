"""The loss against torch's own transform and norms, and its gradient at silence."""

import functools

import jax
import numpy as np
import pytest
import torch

from wroformer_jax.training import losses


def noise(seed, *shape):
    audio = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    audio[..., : shape[-1] // 6] = 0  # digital silence is common
    return audio


def reconstruction_loss(estimate, target, **sizes):
    """The public recipe's: both parts equally weighted."""
    return losses.l1(estimate, target) + losses.multi_resolution_stft_loss(estimate, target, **sizes)


def torch_loss(estimate, target, stft_n_fft, windows, hop):
    """The multi-resolution loss of the BS-RoFormer package, term by term."""
    total = 0.0
    for window in windows:
        spectra = [
            torch.stft(
                torch.from_numpy(audio).reshape(-1, audio.shape[-1]),
                n_fft=max(window, stft_n_fft),
                win_length=window,
                hop_length=hop,
                window=torch.hann_window(window),
                return_complex=True,
            )
            for audio in (estimate, target)
        ]
        total += torch.nn.functional.l1_loss(*spectra).item()
    return total


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((2, 1, 2, 9001), (2048, losses.WINDOWS, losses.HOP)),
        ((1, 2, 2, 4410), (4096, losses.WINDOWS, 441)),
        ((5000,), (512, (1024, 300), 100)),
    ],
)
def test_equals_torch(shape, sizes):
    estimate, target = noise(0, *shape), noise(1, *shape)
    n_fft, windows, hop = sizes
    expected = torch_loss(estimate, target, n_fft, windows, hop)
    sizes = {"stft_n_fft": n_fft, "windows": windows, "hop": hop}
    ours = jax.jit(functools.partial(losses.multi_resolution_stft_loss, **sizes))(estimate, target)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_equals_the_loss_of_the_public_package():
    from bs_roformer import MelBandRoformer

    torch.manual_seed(0)
    model = MelBandRoformer(
        dim=8, depth=1, stereo=True, dim_head=4, heads=1, num_bands=12, flash_attn=False, stft_n_fft=512,
        stft_hop_length=128, stft_win_length=512, mask_estimator_depth=1, time_transformer_depth=1,
    ).eval()  # fmt: skip
    mixture = torch.from_numpy(noise(2, 1, 2, 6400))
    target = 0.5 * mixture
    with torch.no_grad():
        estimate = model(mixture).numpy()
        total, (l1, spectral) = model(mixture, target=target, return_loss_breakdown=True)
    # The package gives several stems an axis of their own and one stem none.
    estimate = estimate.reshape(1, 2, -1)
    target = target.numpy()[..., : estimate.shape[-1]]
    assert float(jax.jit(losses.l1)(estimate, target)) == pytest.approx(l1.item(), rel=1e-5)
    ours = jax.jit(functools.partial(reconstruction_loss, stft_n_fft=512))(estimate, target)
    assert float(ours) == pytest.approx(total.item(), rel=1e-5)
    assert total.item() == pytest.approx(l1.item() + spectral.item(), rel=1e-6)


loss_and_gradient = jax.jit(jax.value_and_grad(reconstruction_loss))


def test_gradient_equals_torch():
    estimate, target = noise(3, 1, 2, 5000), noise(4, 1, 2, 5000)
    _, ours = loss_and_gradient(estimate, target)
    tensor = torch.from_numpy(estimate).requires_grad_()
    total = torch.nn.functional.l1_loss(tensor, torch.from_numpy(target))
    for window in losses.WINDOWS:
        spectra = [
            torch.stft(
                audio.reshape(-1, 5000),
                n_fft=max(window, 2048),
                win_length=window,
                hop_length=losses.HOP,
                window=torch.hann_window(window),
                return_complex=True,
            )
            for audio in (tensor, torch.from_numpy(target))
        ]
        total = total + torch.nn.functional.l1_loss(*spectra)
    total.backward()
    expected = tensor.grad.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("estimate", [noise(5, 1, 2, 5000), np.zeros((1, 2, 5000), np.float32)])
def test_gradient_is_zero_where_nothing_differs(estimate):
    loss, gradient = loss_and_gradient(estimate, estimate)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_an_hour_has_more_values_than_an_int32_counts():
    hour = jax.ShapeDtypeStruct((1, 2, 3600 * 44100), np.float32)
    loss = functools.partial(losses.multi_resolution_stft_loss, values_at_once=2**22)
    assert jax.eval_shape(loss, hour, hour).shape == ()


def test_gradient_is_finite_for_differences_that_underflow_when_squared():
    _, gradient = loss_and_gradient(1e-25 * noise(6, 1, 2, 5000), np.zeros((1, 2, 5000), np.float32))
    assert np.isfinite(gradient).all()
