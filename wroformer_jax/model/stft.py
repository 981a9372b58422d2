"""Short-time Fourier transform and its inverse, as `torch.stft` and `torch.istft` compute them.

Real and imaginary parts are separate arrays with the bins on the last axis: a trailing axis of length 2 would be
padded to 128 lanes on a TPU. Frames are cut as a few shifted views of hop-sized blocks instead of a gather, so
that the gradient is made of slices and sums instead of a scatter.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.parallel.time_axis import WHOLE, Count


def stft(
    audio: Float[Array | np.ndarray, "*batch sample"], *, n_fft: int, hop_length: int, win_length: int
) -> tuple[Float[Array, "*batch frame bin"], Float[Array, "*batch frame bin"]]:
    """Returns the spectrum of reflected, centred, Hann-windowed frames, not normalised.

    As `torch.stft(audio, n_fft, hop_length, win_length, hann_window(win_length), center=True,
    pad_mode="reflect", onesided=True)`, except that frames come before bins.

    Args:
      audio: float32 samples, more than n_fft // 2 of them (reflection needs that many).
      n_fft: length of a frame in samples; the bins are n_fft // 2 + 1.
      hop_length: samples from one frame to the next.
      win_length: length of the periodic Hann window in samples, centred in the frame.

    Returns:
      The real and the imaginary part, 1 + samples // hop_length frames each.
    """
    padded = WHOLE.pad_audio(jnp.asarray(audio), n_fft // 2)
    return spectrum(padded, n_fft=n_fft, hop_length=hop_length, win_length=win_length)


def spectrum(
    padded: Float[Array, "*batch sample"], *, n_fft: int, hop_length: int, win_length: int
) -> tuple[Float[Array, "*batch frame bin"], Float[Array, "*batch frame bin"]]:
    """Returns the spectrum of every whole frame of audio to which half a frame was added on each side."""
    frames = frame(padded, n_fft, hop_length)
    bins = jnp.fft.rfft(frames * jnp.asarray(hann_window(win_length, n_fft)))
    return bins.real, bins.imag


def inverse_stft(
    real: Float[Array, "*batch frame bin"],
    imag: Float[Array, "*batch frame bin"],
    *,
    n_fft: int,
    hop_length: int,
    win_length: int,
) -> Float[Array, "*batch sample"]:
    """Overlap-adds the windowed inverse transforms and divides by the overlapped squared window.

    As `torch.istft(..., center=True, length=None)`: hop_length * (frames - 1) samples.

    Args:
      real: real part of the spectrum.
      imag: imaginary part of the spectrum.
      n_fft: length of a frame in samples.
      hop_length: samples from one frame to the next.
      win_length: length of the periodic Hann window in samples, centred in the frame.
    """
    num_frames = real.shape[-2]
    sizes = {"n_fft": n_fft, "hop_length": hop_length, "win_length": win_length}
    signal = overlapped(real, imag, **sizes)
    envelope = window_envelope(signal.shape[-1] // hop_length, 0, num_frames, **sizes)
    margin, length = n_fft // 2, hop_length * (num_frames - 1)
    return signal[..., margin : margin + length] / envelope[margin : margin + length]


def overlapped(
    real: Float[Array, "*batch frame bin"],
    imag: Float[Array, "*batch frame bin"],
    *,
    n_fft: int,
    hop_length: int,
    win_length: int,
) -> Float[Array, "*batch sample"]:
    """Overlap-adds as `inverse_stft`, without dividing. Begins half a frame before the centre of the first frame."""
    # The imaginary parts of bin 0 and of the Nyquist bin are ignored, as torch does.
    frames = jnp.fft.irfft(real + 1j * imag, n=n_fft) * jnp.asarray(hann_window(win_length, n_fft))
    return overlap_add(frames, hop_length)


@functools.cache
def hann_window(win_length: int, n_fft: int) -> Float[np.ndarray, " n_fft"]:
    """Returns the periodic Hann window of `win_length` samples, zero-padded to `n_fft` on both sides, float32."""
    # Rounded to float32 where torch.hann_window rounds. The first values of the window are of the order of its rounding
    # errors. Where music begins after silence, a frame may see only these, and the norms scale it up to full size.
    angles = np.arange(win_length, dtype=np.float32) * np.float32(2 * np.pi / win_length)
    window = np.cos(angles.astype(np.float64)).astype(np.float32) * np.float32(-0.5) + np.float32(0.5)
    left = (n_fft - win_length) // 2
    return np.pad(window, (left, n_fft - win_length - left))


def frame(signal: Float[Array, "*batch sample"], n_fft: int, hop: int) -> Float[Array, "*batch frame n_fft"]:
    """Returns every whole frame of `n_fft` samples, `hop` apart."""
    num_frames = 1 + (signal.shape[-1] - n_fft) // hop
    shifts = -(-n_fft // hop)
    num_blocks = num_frames + shifts - 1
    # The last frame may end inside the last block, or the signal may go on after it: pad or cut to whole blocks.
    missing = max(0, num_blocks * hop - signal.shape[-1])
    signal = jnp.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, missing)])[..., : num_blocks * hop]
    blocks = signal.reshape(*signal.shape[:-1], num_blocks, hop)
    shifted = [blocks[..., i : i + num_frames, :] for i in range(shifts)]
    return jnp.concatenate(shifted, axis=-1)[..., :n_fft]


def pieces_of_frames(
    padded: Float[Array, "*batch sample"], count: int, frames: int, n_fft: int, hop: int
) -> Float[Array, "*batch piece piece_sample"]:
    """Returns the samples that `count` pieces of `frames` frames each need, zeros after the end of the audio."""
    size, step = (frames - 1) * hop + n_fft, frames * hop
    missing = size + (count - 1) * step - padded.shape[-1]
    padded = jnp.pad(padded, [(0, 0)] * (padded.ndim - 1) + [(0, max(0, missing))])
    return frame(padded, size, step)[..., :count, :]


def overlap_add(frames: Float[Array, "*batch frame n_fft"], hop: int) -> Float[Array, "*batch sample"]:
    """The transpose of `frame`: sums frames, `hop` apart, into (frames - 1 + ceil(n_fft / hop)) * hop samples."""
    *batch, num_frames, n_fft = frames.shape
    shifts = -(-n_fft // hop)
    frames = jnp.pad(frames, [(0, 0)] * (frames.ndim - 1) + [(0, shifts * hop - n_fft)])
    pieces = frames.reshape(*batch, num_frames, shifts, hop)
    lead = [(0, 0)] * len(batch)
    shifted = (jnp.pad(pieces[..., i, :], [*lead, (i, shifts - 1 - i), (0, 0)]) for i in range(shifts))
    blocks = functools.reduce(jnp.add, shifted)
    return blocks.reshape(*batch, (num_frames + shifts - 1) * hop)


def window_envelope(
    num_blocks: int, first: Count, end: Count, *, n_fft: int, hop_length: int, win_length: int
) -> Float[Array, " sample"]:
    """Returns the overlap-added squared window.

    It is computed on the device, because a constant as long as the audio would bloat the program.

    Args:
      num_blocks: length of the result in hops; it begins where frame 0 does.
      first: number of the first frame; frames before 0 reach into the result, too.
      end: number after the last frame.
      n_fft: length of a frame in samples.
      hop_length: samples from one frame to the next.
      win_length: length of the periodic Hann window in samples, centred in the frame.
    """
    shifts = -(-n_fft // hop_length)
    squares = hann_window(win_length, n_fft) ** 2
    pieces = np.pad(squares, (0, shifts * hop_length - n_fft)).reshape(shifts, hop_length)
    frame_of_piece = jnp.arange(num_blocks)[:, None] - jnp.arange(shifts)
    present = (frame_of_piece >= first) & (frame_of_piece < end)
    blocks = functools.reduce(jnp.add, (present[:, i, None] * jnp.asarray(pieces[i]) for i in range(shifts)))
    return blocks.reshape(-1)


def stft_sizes(config: ModelConfig) -> dict[str, int]:
    """The sizes of a model's transform, as keyword arguments of the functions here."""
    return {
        "n_fft": config.stft_n_fft,
        "hop_length": config.stft_hop_length,
        "win_length": config.stft_win_length,
    }


def stack_planes(
    real: Float[Array, "batch channel frame bin"], imag: Float[Array, "batch channel frame bin"]
) -> Float[Array, "batch plane frame bin"]:
    """Real and imaginary parts as one array: (left re, left im, right re, right im) for stereo."""
    batch, channels, *rest = real.shape
    return jnp.stack([real, imag], axis=2).reshape(batch, 2 * channels, *rest)
