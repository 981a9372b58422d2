"""The loss of the public training recipe: L1 of the waveform plus L1 of complex spectra, several resolutions.

The values are those of the PyTorch BS-RoFormer package's own `loss = model(mixture, target=...)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wroformer_jax.model.stft import pieces_of_frames, spectrum
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

WINDOWS = (4096, 2048, 1024, 512, 256)  # samples
HOP = 147  # samples


def l1(
    estimate: Float[Array, "*batch sample"], target: Float[Array, "*batch sample"], *, time: TimeAxis = WHOLE
) -> Float[Array, ""]:
    """Mean absolute difference of two waveforms, its gradient 0 where they are equal.

    Args:
      estimate: waveforms.
      target: waveforms of the same shape.
      time: what lies beyond the samples at hand.
    """
    difference = _difference(estimate, target, time)
    # JAX gives |x| the slope 1 at 0, which would push at samples of digital silence; torch gives 0, as this does.
    modulus = difference * jax.lax.stop_gradient(jnp.sign(difference))
    count = float(math.prod(modulus.shape[:-1]) * time.total_samples(modulus.shape[-1]))
    return time.sum(jnp.sum(modulus)) / count


def multi_resolution_stft_loss(
    estimate: Float[Array, "*batch sample"],
    target: Float[Array, "*batch sample"],
    *,
    stft_n_fft: int = 2048,
    windows: Sequence[int] = WINDOWS,
    hop: int = HOP,
    time: TimeAxis = WHOLE,
    values_at_once: int = 0,
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
      time: what lies beyond the samples at hand.
      values_at_once: frames x n_fft of a waveform that are worked on at a time, and computed again for the gradient;
        0 for all at once.
    """
    difference = _difference(estimate, target, time)
    total = jnp.zeros((), difference.dtype)
    for window in windows:
        sizes = {"n_fft": max(window, stft_n_fft), "hop_length": hop, "win_length": window}
        total += _mean_spectrum(difference, time, values_at_once, **sizes)
    return total


def reconstruction_loss(
    estimate: Float[Array, "*batch sample"], target: Float[Array, "*batch sample"], **sizes: Any
) -> Float[Array, ""]:
    """`l1` plus `multi_resolution_stft_loss` (which gets `sizes`), equally weighted, as the public recipe has them."""
    return l1(estimate, target) + multi_resolution_stft_loss(estimate, target, **sizes)


def modulus(real: Float[Array, "*shape"], imag: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """|real + i imag|, its gradient 0 where it is 0, as torch has it; the bare square root would give NaN."""
    power = real * real + imag * imag
    positive = power > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, power, 1)), 0)


def _difference(estimate: Array, target: Array, time: TimeAxis) -> Array:
    """Zero behind the end of the recording."""
    samples = estimate.shape[-1]
    difference = estimate - target
    return difference if time.is_whole else difference * (jnp.arange(samples) < time.samples_to_end(samples))


def _mean_spectrum(
    signal: Float[Array, "*batch sample"],
    time: TimeAxis,
    values_at_once: int,
    *,
    n_fft: int,
    hop_length: int,
    win_length: int,
) -> Float[Array, ""]:
    """Mean modulus of the spectrum of waveforms."""
    sizes = {"n_fft": n_fft, "hop_length": hop_length, "win_length": win_length}
    samples, batch = signal.shape[-1], math.prod(signal.shape[:-1])
    padded, num_hops = time.pad_audio(signal, n_fft // 2), samples // hop_length
    at_once = max(1, values_at_once // n_fft) if values_at_once else num_hops + 1
    count = -(-(num_hops + 1) // at_once)
    frames = -(-(num_hops + 1) // count)
    own = jnp.arange(count * frames).reshape(count, frames) < time.owned_end_frame(num_hops)

    def sum_of(part: Array, counts: Array) -> Array:
        return jnp.sum(modulus(*spectrum(part, **sizes)) * counts[:, None])

    if count == 1:
        total = sum_of(padded, own[0])
    else:
        pieces = jnp.moveaxis(pieces_of_frames(padded, count, frames, n_fft, hop_length), -2, 0)
        total = jnp.sum(jax.lax.map(lambda piece: jax.checkpoint(sum_of)(*piece), (pieces, own)))
    num_frames = 1 + time.total_samples(samples) // hop_length
    # Of an hour there are more values than an int32 counts.
    return time.sum(total) / float(batch * num_frames * (n_fft // 2 + 1))
