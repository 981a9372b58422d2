"""Bleedless and fullness of recordings of any length, in memory for about a second of mel spectrogram."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float, Float32

WINDOW, HOP, BANDS = 4096, 1024, 512  # samples, samples, mel bands
_FLOOR = np.float32(1e-10)  # smallest magnitude, -200 dB
_RANGE = np.float32(80)  # dB below the loudest point; everything quieter counts as this

# Starts the stream from its beginning at each call: it is read twice.
Recording = Callable[[], Iterable[Float[np.ndarray, "channel _"]]]


def bleedless_fullness(reference: Recording, estimate: Recording, *, sample_rate: int) -> tuple[float, float]:
    """Returns (bleedless, fullness), each from 0 to 100; `metrics.bleedless_fullness` defines them.

    Args:
      reference: the true stem, in arrays of any length.
      estimate: its estimate, in arrays of the same lengths.
      sample_rate: Hz.
    """
    recordings = (reference, estimate)
    loudest = [_loudest(mel_magnitudes(recording(), sample_rate)) for recording in recordings]
    if loudest[0] <= _FLOOR:
        return math.nan, math.nan
    floors = [_decibels(magnitude) - _RANGE for magnitude in loudest]
    more, less = _Mean(), _Mean()
    for pair in zip(*(mel_magnitudes(recording(), sample_rate) for recording in recordings), strict=True):
        before, after = (np.maximum(_decibels(mel), floor) for mel, floor in zip(pair, floors, strict=True))
        difference = after - before
        more.add(difference[difference > 0])
        less.add(difference[difference < 0])
    return 100 / (1 + more.value), 100 / (1 - less.value)


def mel_magnitudes(
    recording: Iterable[Float[np.ndarray, "channel _"]], sample_rate: int
) -> Iterator[Float32[np.ndarray, "channel frame 512"]]:
    """Yields the mel spectrogram of a stream piece by piece.

    The pieces have 1 + samples // HOP frames together; frame i is centred at sample i * HOP.
    """
    bands = _bands(sample_rate)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    for audio in _overlapping(_with_silent_ends(recording)):
        windows = np.lib.stride_tricks.sliding_window_view(audio, WINDOW, axis=-1)[:, ::HOP]
        spectra = np.abs(np.fft.rfft(windows * hann))
        yield np.stack([spectrum @ bands for spectrum in spectra]).astype(np.float32)


def _loudest(spectrogram: Iterable[Float32[np.ndarray, "channel frame 512"]]) -> np.float32:
    return max((mel.max() for mel in spectrogram), default=np.float32(0))


class _Mean:
    """The mean of values that come in several arrays; 0 if there are none."""

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._count = 0

    def add(self, values: Float32[np.ndarray, " _"]) -> None:
        self._sums.append(float(np.sum(values, dtype=np.float64)))
        self._count += values.size

    @property
    def value(self) -> float:
        return math.fsum(self._sums) / max(self._count, 1)


def _with_silent_ends(recording: Iterable[Float[np.ndarray, "channel _"]]) -> Iterator[Float[np.ndarray, "channel _"]]:
    """Adds half a window of zeros before and after a stream."""
    recording = iter(recording)
    if (first := next(recording, None)) is not None:
        silence = np.zeros((len(first), WINDOW // 2), np.float32)
        yield from itertools.chain([silence, first], recording, [silence])


def _overlapping(recording: Iterable[Float[np.ndarray, "channel _"]]) -> Iterator[Float[np.ndarray, "channel _"]]:
    """Recuts a stream into arrays of whole windows; the samples that later windows share are repeated."""
    waiting = None
    for audio in recording:
        waiting = audio if waiting is None else np.concatenate([waiting, audio], axis=-1)
        count = (waiting.shape[-1] - WINDOW) // HOP + 1
        if count > 0:
            yield waiting[:, : (count - 1) * HOP + WINDOW]
            waiting = waiting[:, count * HOP :]


@functools.cache
def _bands(sample_rate: int):
    """librosa's mel filters as a sparse matrix (bin, band), since each band sums a few bins only."""
    import warnings

    import librosa
    from scipy import sparse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with so many bands, some lie between two bins and stay empty
        filters = librosa.filters.mel(sr=sample_rate, n_fft=WINDOW, n_mels=BANDS)
    return sparse.csr_array(filters.T.astype(np.float64))


def _decibels(magnitudes):
    return 20 * np.log10(np.maximum(magnitudes, _FLOOR))
