"""The pictures in a training workdir: spectrograms of a separation, and curves of loss and SDR."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from wroformer_jax.io.files import replacing

_N_FFT, _HOP, _NUM_MELS = 4096, 1024, 192
_RANGE_DB = 70  # dynamic range of a spectrogram below its loudest point
_TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000, 16000)


def save_spectrograms(
    path: str | os.PathLike, panels: Mapping[str, Float[np.ndarray, "channel sample"]], *, sample_rate: int
) -> None:
    """Writes a PNG with one mel spectrogram per panel, one below the other, all on the same scales.

    Args:
      path: of the PNG; an earlier one is replaced once the new one is complete.
      panels: title -> audio, all of the same length.
      sample_rate: Hz.
    """
    import librosa

    num_mels = _NUM_MELS
    images = {title: _mel_levels(audio, sample_rate) for title, audio in panels.items()}
    loudest = max(float(image.max()) for image in images.values())
    seconds = max(audio.shape[-1] for audio in panels.values()) / sample_rate

    mel_range = librosa.hz_to_mel([40, sample_rate / 2], htk=True)
    ticks = [hz for hz in _TICKS_HZ if hz < sample_rate / 2]
    tick_places = (librosa.hz_to_mel(ticks, htk=True) - mel_range[0]) / (mel_range[1] - mel_range[0]) * num_mels

    figure = _figure(10.0, 2.6 * len(panels) + 0.6)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, image) in zip(axes, images.items(), strict=True):
        drawn = axis.imshow(
            image - loudest,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, num_mels),
            cmap="magma",
            vmin=-_RANGE_DB,
            vmax=0,
        )
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_ylabel("frequency (Hz)")
        axis.set_yticks(tick_places, [f"{hz // 1000}k" if hz >= 1000 else str(hz) for hz in ticks])
    axes[-1].set_xlabel("time (s)")
    figure.colorbar(drawn, ax=list(axes), label="level (dB below the loudest point)", pad=0.015, aspect=40)
    _save(figure, path)


def spectrogram_image(
    audio: Float[np.ndarray, "channel sample"], *, sample_rate: int, beside: Float[np.ndarray, "channel other"]
) -> UInt8[np.ndarray, "row column rgb"]:
    """Returns a mel spectrogram as a picture without axes, high frequencies on top.

    It has two pixels per band (192 bands) and two per hop of 1,024 samples.

    Args:
      audio: the audio to show.
      sample_rate: Hz.
      beside: audio whose loudest point is the brightest level, so that pictures of one song can be compared.
    """
    from matplotlib import colormaps

    below = _mel_levels(audio, sample_rate) - _mel_levels(beside, sample_rate).max()
    picture = colormaps["magma"](np.clip(1 + below[::-1] / _RANGE_DB, 0, 1), bytes=True)[..., :3]
    return picture.repeat(2, axis=0).repeat(2, axis=1)


def save_curves(
    path: str | os.PathLike,
    *,
    loss: Sequence[tuple[int, float]],
    sdr: Sequence[tuple[int, float]],
    mixture_sdr: float | None,
) -> None:
    """Writes a PNG with the training loss and the SDR on unseen songs against the step.

    Args:
      path: of the PNG; an earlier one is replaced once the new one is complete.
      loss: (step, training loss).
      sdr: (step, mean uSDR in dB).
      mixture_sdr: uSDR in dB of the unprocessed mixture, taken as the estimate; None without validation songs.
    """
    figure = _figure(10.0, 4.0)
    left, right = figure.subplots(1, 2)
    if loss:
        steps, values = np.array(loss, np.float64).T
        left.plot(steps, values, color="tab:blue", alpha=0.3, marker=".", linewidth=1, label="as logged")
        left.plot(steps, _running_mean(values), color="tab:blue", linewidth=2, label="running mean")
        left.set_ylim(bottom=0)
        left.legend(frameon=False)
    left.set_title("Training loss", loc="left", fontsize=11)
    left.set_ylabel("L1 + multi-resolution STFT")
    if sdr:
        steps, values = np.array(sdr, np.float64).T
        right.plot(steps, values, color="tab:orange", marker="o", markersize=4, linewidth=2, label="estimate")
    if mixture_sdr is not None:
        right.axhline(mixture_sdr, color="gray", linestyle="--", label=f"the mixture itself, {mixture_sdr:.1f} dB")
    right.axhline(0, color="gray", linestyle=":", label="silence, 0 dB")
    right.legend(frameon=False)
    right.set_title("SDR on unseen songs", loc="left", fontsize=11)
    right.set_ylabel("uSDR (dB)")
    last_step = max([1, *(step for step, _ in (*loss, *sdr))])
    for axis in (left, right):
        axis.set_xlim(-0.03 * last_step, 1.03 * last_step)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("training step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _mel_levels(audio: Float[np.ndarray, "channel sample"], sample_rate: int) -> Float[np.ndarray, "mel frame"]:
    """Returns the mel spectrogram in dB."""
    import librosa

    bank = librosa.filters.mel(sr=sample_rate, n_fft=_N_FFT, n_mels=_NUM_MELS, fmin=40, htk=True)
    return 10 * np.log10(bank @ _power(audio, _N_FFT, _HOP) + 1e-12)


def _power(audio: np.ndarray, n_fft: int, hop: int) -> Float[np.ndarray, "bin frame"]:
    """Returns the power spectrogram, averaged over channels; a full-scale sine has a power of 1."""
    margin = n_fft // 2
    padded = np.pad(audio, ((0, 0), (margin, margin)))
    window = np.hanning(n_fft + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=1)[:, ::hop] * window
    spectrum = np.abs(np.fft.rfft(frames)) * 2 / window.sum()
    return np.mean(spectrum**2, axis=0).T


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over a tenth of the curve around each point."""
    width = max(1, len(values) // 10) | 1
    counts = np.convolve(np.ones(len(values)), np.ones(width), mode="same")
    return np.convolve(values, np.ones(width), mode="same") / counts


def _figure(width: float, height: float):
    # pyplot would open a window or keep global state; this always uses the Agg renderer.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: str | os.PathLike) -> None:
    # matplotlib would add a suffix to a path without one, but not to an open file.
    with replacing(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
