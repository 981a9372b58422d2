"""The loss of the public training recipe: L1 of the waveform plus L1 of complex spectra, several resolutions.

The values are those of the PyTorch BS-RoFormer package's own `loss = model(mixture, target=...)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    """Mean absolute difference of two waveforms over the whole recording; its gradient is 0 where they are equal.

    Args:
      estimate: waveforms.
      target: waveforms of the same shape.
      time: where these samples lie in the recording.
    """
    difference = _difference(estimate, target, time)
    # In JAX the slope of |x| at 0 is 1, which would move samples of digital silence; in torch it is 0, and here, too.
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

    Equals `sum(F.l1_loss(torch.stft(estimate, n_fft), torch.stft(target, n_fft)))`, where n_fft is the larger of the
    window and `stft_n_fft`, with a periodic Hann window and no normalisation. The transform is linear, so one
    transform of the difference of the waveforms is enough.

    Args:
      estimate: waveforms, longer than half of the longest window and half of `stft_n_fft`.
      target: waveforms of the same shape.
      stft_n_fft: the model's n_fft, the length of the shortest transform, in samples.
      windows: lengths of the windows in samples.
      hop: samples from one frame to the next.
      time: where these samples lie in the recording.
      values_at_once: frames x n_fft of a waveform that are transformed at a time, and recomputed for the gradient; 0
        for all at once.
    """
    difference = _difference(estimate, target, time)
    total = jnp.zeros((), difference.dtype)
    for window in windows:
        sizes = {"n_fft": max(window, stft_n_fft), "hop_length": hop, "win_length": window}
        total += _mean_spectrum(difference, time, values_at_once, **sizes)
    return total


def modulus(real: Float[Array, "*shape"], imag: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """|real + i imag|. Its gradient is 0 where it is 0, as in torch; that of the bare square root would be NaN."""
    power = real * real + imag * imag
    positive = power > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, power, 1)), 0)


def _difference(estimate: Array, target: Array, time: TimeAxis) -> Array:
    """The difference of two waveforms, zero after the end of the recording."""
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
    """Mean modulus of the spectrum of waveforms, over all frames and bins of the whole recording."""
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
    # A float, because an hour has more values than an int32 can count.
    return time.sum(total) / float(batch * num_frames * (n_fft // 2 + 1))
