"""Numbers that say how good a separation is, computed on the host, ratios in float64.

A stem that is silent throughout has no signal-to-distortion ratio: the functions return NaN, which means
"undefined" here, and `mean_defined` leaves such songs out. Infinities are never returned, so never averaged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from wroformer_jax.errors import InputError

# Ratios are clamped to +-140 dB: float32 audio holds about 138 dB, so more than that says "equal".
_FLOOR = 1e-14

_MEL_WINDOW, _MEL_HOP, _MEL_BANDS = 4096, 1024, 512  # samples, samples, bands of bleedless and fullness
_MEL_FLOOR = 1e-10  # a magnitude of zero counts as this, -200 dB
_MEL_RANGE = 80.0  # dB below the loudest point that are looked at
_MEL_FRAMES_AT_ONCE = 256

_LEAKAGE_SECONDS = 0.5  # a frame
# Above the dither of 16 bits (-96 dB), and so low that what a reference itself holds there cannot pass for leakage.
_SILENT = 1e-8  # mean square, -80 dB of full scale


def usdr(reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*shape"]) -> float:
    """Signal-to-distortion ratio of a whole track: 10 log10(sum reference² / sum (reference - estimate)²), dB.

    The "new SDR" of the Music Demixing Challenge 2021 (arXiv 2108.13559): sums over samples and channels.
    A silent estimate has 0 dB; at most 140 dB, for an estimate that equals its reference.

    Returns:
      dB, or NaN ("undefined") for a silent reference.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    reference, estimate = _checked(reference, estimate)
    if not np.any(reference):
        return math.nan
    return _decibels(np.sum(reference**2), np.sum((reference - estimate) ** 2))


def si_sdr(reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*shape"]) -> float:
    """Scale-invariant SDR (Le Roux et al., arXiv 1811.02508), all channels together with one scale, in dB.

    Returns:
      dB between -140 and 140, or NaN ("undefined") for a silent reference or a silent estimate.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    reference, estimate = _checked(reference, estimate)
    if not np.any(reference) or not np.any(estimate):
        return math.nan
    projection = np.sum(reference * estimate) / np.sum(reference**2) * reference
    return _decibels(np.sum(projection**2), np.sum((estimate - projection) ** 2))


def csdr(
    references: Sequence[Float[np.ndarray, "_ _"]],
    estimates: Sequence[Float[np.ndarray, ...]],
    *,
    sample_rate: int,
) -> list[float]:
    """SDR of BSS Eval 4 (images) as `museval` reports it: the median over frames of 1 s, in dB.

    The SDR of BSS Eval 4 is 10 log10(sum reference² / sum (estimate - reference)²) of a frame: its distortion
    filters share the error out between SIR, SAR and ISR, and cancel in SDR. So museval's number is had without
    its 512-tap filters (tests hold the two against each other; `museval_csdr` asks museval itself). Its rules:
    the incomplete frame at the end is dropped, unless it is the only one, and a frame in which the channels of any
    reference or estimate add up to silence counts for no stem, so that the number depends on which stems are
    scored together. Frames are at most 140 dB, where museval's are rounding errors.

    Source: museval 0.4.1 (github.com/sigsep/sigsep-mus-eval), arXiv 1804.06267.

    Args:
      references: of each stem, all of one shape.
      estimates: of each stem.
      sample_rate: Hz, the samples of a frame.

    Returns:
      dB for each stem, or NaN ("undefined"): a silent reference or estimate, which museval refuses and which is
      left out here, the others being scored without it; or no frame that counts.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    heard = _heard(references, estimates)
    frames: dict[int, list[float]] = {index: [] for index in heard}
    samples = references[0].shape[-1]
    for start in range(0, max(samples - sample_rate, 0) + 1, sample_rate):
        frame = slice(start, min(start + sample_rate, samples))
        pairs = {
            index: (references[index][:, frame].astype(np.float64), estimates[index][:, frame].astype(np.float64))
            for index in heard
        }
        if any(not np.any(audio.sum(axis=0)) for pair in pairs.values() for audio in pair):
            continue
        for index, (reference, estimate) in pairs.items():
            frames[index].append(_decibels(np.sum(reference**2), np.sum((estimate - reference) ** 2)))
    return [float(np.median(frames[index])) if frames.get(index) else math.nan for index in range(len(references))]


def museval_csdr(
    references: Sequence[Float[np.ndarray, "_ _"]],
    estimates: Sequence[Float[np.ndarray, ...]],
    *,
    sample_rate: int,
) -> list[float]:
    """`csdr` by the museval package itself, which takes minutes and gigabytes for a song of four minutes.

    Raises:
      InputError: the shapes differ, a sample is not finite, or museval cannot be used.
    """
    museval = import_museval()
    heard = _heard(references, estimates)
    if not heard:
        return [math.nan] * len(references)
    decibels, *_ = museval.evaluate(
        np.stack([references[index].T for index in heard]).astype(np.float64),
        np.stack([estimates[index].T for index in heard]).astype(np.float64),
        win=sample_rate,
        hop=sample_rate,
    )
    of_stem = dict(zip(heard, np.where(np.isfinite(decibels), decibels, np.nan), strict=True))
    return [
        float(np.nanmedian(of_stem[index])) if index in of_stem and not np.all(np.isnan(of_stem[index])) else math.nan
        for index in range(len(references))
    ]


def import_museval():
    """The museval package.

    Raises:
      InputError: it is not installed, or lacks the ffmpeg command that it wants although it is not used here.
    """
    try:
        import museval
    except ModuleNotFoundError as error:
        raise InputError(f'museval needs {error.name}: install it with pip install "wroformer-jax[eval]"') from error
    except RuntimeError as error:  # stempeg's, which musdb imports, which museval imports
        raise InputError(f"museval cannot be used: {str(error).split('!')[0]}; install ffmpeg") from error
    return museval


def bleedless_fullness(
    reference: Float[np.ndarray, "channel sample"],
    estimate: Float[np.ndarray, ...],
    *,
    sample_rate: int = 44100,
) -> tuple[float, float]:
    """How little the estimate has that the reference has not, and how much of the reference it has, 0 to 100.

    d is the mel spectrogram of the estimate minus that of the reference, in dB: magnitudes of an STFT (periodic
    Hann window of 4096 samples, hop 1024, zeros beyond the ends), librosa's 512 mel bands, 20 log10, floor 80 dB
    below the signal's own loudest point. Channels are kept apart and pooled, in the maximum and in the means.
    bleedless = 100 / (1 + mean of the positive d), fullness = 100 / (1 - mean of the negative d); the means are
    over the points where d has that sign, 0 where there is none.

    Source: `bleed_full` of ZFTurbo's Music-Source-Separation-Training (utils/metrics.py), which always takes the
    mel bands of 44100 Hz.

    Returns:
      (bleedless, fullness), both NaN ("undefined") for a silent reference.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    reference, estimate = _checked(reference, estimate)
    if not np.any(reference):
        return math.nan, math.nan
    difference = _mel_decibels(estimate, sample_rate) - _mel_decibels(reference, sample_rate)
    more, less = difference[difference > 0], difference[difference < 0]
    excess = float(np.mean(more, dtype=np.float64)) if more.size else 0.0
    loss = -float(np.mean(less, dtype=np.float64)) if less.size else 0.0
    return 100 / (1 + excess), 100 / (1 + loss)


def leakage_db(
    reference: Float[np.ndarray, "channel sample"],
    estimate: Float[np.ndarray, ...],
    mixture: Float[np.ndarray, ...],
    *,
    sample_rate: int = 44100,
) -> float:
    """The level of the estimate where the reference is silent, relative to the mixture's there, in dB.

    10 log10(sum estimate² / sum mixture²), the sums over all the frames of half a second in which the reference is
    silent (below -80 dB of full scale, root mean square over the channels) and the mixture is not. 0 dB lets
    everything through; the lower, the better; at least -140 dB. The incomplete frame at the end is left out,
    unless it is the only one.

    Returns:
      dB, or NaN ("undefined") where no frame is like that.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    reference, estimate = _checked(reference, estimate)
    _, mixture = _checked(reference, mixture)
    length = min(round(_LEAKAGE_SECONDS * sample_rate), reference.shape[-1])
    power, leaked, offered = (_frame_power(audio, length) for audio in (reference, estimate, mixture))
    is_counted = (power < _SILENT) & (offered >= _SILENT)
    if not np.any(is_counted):
        return math.nan
    let_through = float(np.sum(leaked[is_counted]) / np.sum(offered[is_counted]))
    return 10 * math.log10(max(let_through, _FLOOR))


def mean_defined(decibels: Iterable[float]) -> float:
    """Mean of the values that are defined (not NaN); NaN if none is."""
    defined = [value for value in decibels if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _checked(reference: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if reference.shape != estimate.shape:
        raise InputError(
            f"the shapes of reference {reference.shape} and estimate {estimate.shape} differ: make them equal"
        )
    for name, audio in (("reference", reference), ("estimate", estimate)):
        if not np.all(np.isfinite(audio)):
            raise InputError(f"the {name} holds samples that are NaN or infinite")
    return reference.astype(np.float64), estimate.astype(np.float64)


def _heard(references: Sequence[np.ndarray], estimates: Sequence[np.ndarray]) -> list[int]:
    """Checks the arrays; the stems of which neither reference nor estimate is silent, as museval sees silence."""
    for reference, estimate in zip(references, estimates, strict=True):
        _checked(reference, estimate)
        _checked(references[0], reference)
    pairs = zip(references, estimates, strict=True)
    return [index for index, pair in enumerate(pairs) if all(np.any(audio.sum(axis=0)) for audio in pair)]


def _mel_decibels(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mel spectrogram (channel, frame, band) in dB, with nothing more than 80 dB below its maximum."""
    bands = _mel_bands(sample_rate)
    padded = np.pad(audio, ((0, 0), (_MEL_WINDOW // 2, _MEL_WINDOW // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _MEL_WINDOW, axis=-1)[:, ::_MEL_HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_MEL_WINDOW) / _MEL_WINDOW)
    mel = np.empty((*windows.shape[:2], _MEL_BANDS), np.float32)
    for channel in range(windows.shape[0]):
        for start in range(0, windows.shape[1], _MEL_FRAMES_AT_ONCE):
            frames = slice(start, start + _MEL_FRAMES_AT_ONCE)
            mel[channel, frames] = np.abs(np.fft.rfft(windows[channel, frames] * hann)) @ bands
    decibels = 20 * np.log10(np.maximum(mel, np.float32(_MEL_FLOOR)))
    return np.maximum(decibels, decibels.max() - np.float32(_MEL_RANGE))


@functools.cache
def _mel_bands(sample_rate: int):
    """librosa's filters as a sparse matrix (bin, band): each band sums a few bins only."""
    import warnings

    import librosa
    from scipy import sparse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of so many bands lie between two bins and stay empty
        filters = librosa.filters.mel(sr=sample_rate, n_fft=_MEL_WINDOW, n_mels=_MEL_BANDS)
    return sparse.csr_array(filters.T.astype(np.float64))


def _frame_power(audio: np.ndarray, length: int) -> np.ndarray:
    """Mean square of each whole frame, over its samples and all channels."""
    count = audio.shape[-1] // length
    frames = audio[:, : count * length].reshape(audio.shape[0], count, length)
    return np.mean(frames**2, axis=(0, 2))


def _decibels(signal: float, noise: float) -> float:
    floor = _FLOOR * (signal + noise)
    return float(10 * np.log10(max(signal, floor) / max(noise, floor)))
