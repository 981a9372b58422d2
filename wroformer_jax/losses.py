"""The loss of the public training recipe: L1 of the waveform plus L1 of complex spectra, several resolutions.

The values are those of the PyTorch BS-RoFormer package's own `loss = model(mixture, target=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wroformer_jax.stft import stft

WINDOWS = (4096, 2048, 1024, 512, 256)  # samples
HOP = 147  # samples


def l1(estimate: Float[Array, "*batch sample"], target: Float[Array, "*batch sample"]) -> Float[Array, ""]:
    """Mean absolute difference of two waveforms, its gradient 0 where they are equal."""
    difference = estimate - target
    # JAX gives |x| the slope 1 at 0, which would push at samples of digital silence; torch gives 0, as this does.
    return jnp.mean(difference * jax.lax.stop_gradient(jnp.sign(difference)))


def multi_resolution_stft_loss(
    estimate: Float[Array, "*batch sample"],
    target: Float[Array, "*batch sample"],
    *,
    stft_n_fft: int = 2048,
    windows: Sequence[int] = WINDOWS,
    hop: int = HOP,
) -> Float[Array, ""]:
    """Sum over windows of the mean modulus of the difference of two complex spectra.

    As `sum(F.l1_loss(torch.stft(estimate, n_fft), torch.stft(target, n_fft)))`, with n_fft the larger of the
    window and `stft_n_fft`, a periodic Hann window and no normalisation. The transform is linear, so it is
    taken once, of the difference of the waveforms.

    Args:
      estimate: waveforms; more samples than half of the longest window and of `stft_n_fft`.
      target: waveforms of the same shape.
      stft_n_fft: the model's own n_fft, the shortest transform taken, in samples.
      windows: lengths of the windows in samples.
      hop: samples from one frame to the next.
    """
    difference = estimate - target
    total = jnp.zeros((), difference.dtype)
    for window in windows:
        spectrum = stft(difference, n_fft=max(window, stft_n_fft), hop_length=hop, win_length=window)
        total += mean_modulus(*spectrum)
    return total


def reconstruction_loss(
    estimate: Float[Array, "*batch sample"], target: Float[Array, "*batch sample"], **sizes: Any
) -> Float[Array, ""]:
    """`l1` plus `multi_resolution_stft_loss` (which gets `sizes`), equally weighted, as the public recipe has them."""
    return l1(estimate, target) + multi_resolution_stft_loss(estimate, target, **sizes)


def mean_modulus(
    real: Float[Array, "*shape"], imag: Float[Array, "*shape"], weights: Float[np.ndarray, ...] | float = 1.0
) -> Float[Array, ""]:
    """Mean of weights * |real + i imag|, its gradient 0 where the modulus is 0, as torch has it; the bare square root
    would give NaN."""
    power = real * real + imag * imag
    positive = power > 0
    return jnp.mean(weights * jnp.where(positive, jnp.sqrt(jnp.where(positive, power, 1)), 0))
