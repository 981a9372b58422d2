"""Quality metrics of separated stems: functions of whole arrays, with their definitions and sources.

streaming_sdr.py and bleedless.py compute the same numbers from streams, in bounded memory; ratios are in float64.
A silent reference has no signal-to-distortion ratio: the functions then return NaN, which means "undefined", and
`mean_defined` leaves it out of averages. No metric is ever infinite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import bleedless, streaming_sdr

_RATE = 44100  # Hz; any rate gives the same uSDR and SI-SDR


def usdr(reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*shape"]) -> float:
    """Signal-to-distortion ratio of a whole track: 10 log10(sum reference² / sum (reference - estimate)²), dB.

    The sums are over samples and channels. This is the "new SDR" of the Music Demixing Challenge 2021
    (arXiv 2108.13559). A silent estimate has 0 dB; an estimate that equals its reference has 140 dB, the maximum.

    Returns:
      dB, or NaN ("undefined") for a silent reference.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    return streaming_sdr.usdr(_sums_of_seconds(reference, estimate, _RATE))


def si_sdr(reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*shape"]) -> float:
    """Scale-invariant SDR in dB (Le Roux et al., arXiv 1811.02508), with one scale for all channels together.

    10 log10(sum target² / sum (estimate - target)²), target = reference * sum reference estimate / sum reference².
    Means are not subtracted.

    Returns:
      dB between -140 and 140, or NaN ("undefined") for a silent reference or a silent estimate.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    return streaming_sdr.si_sdr(_sums_of_seconds(reference, estimate, _RATE))


def csdr(
    references: Sequence[Float[np.ndarray, "_ _"]],
    estimates: Sequence[Float[np.ndarray, ...]],
    *,
    sample_rate: int,
) -> list[float]:
    """SDR of BSS Eval 4 (images) as `museval` reports it: the median over seconds, in dB.

    The SDR of one second is 10 log10(sum reference² / sum (estimate - reference)²). BSS Eval's distortion filters only
    divide the error among SIR, SAR and ISR, and cancel in SDR. So we get museval's number without its 512-tap filters
    (tests compare the two; `museval_csdr` calls museval itself). We follow its rules: an incomplete second at the end
    is dropped, unless it is the only one; and a second in which the channels of any reference or estimate add up to
    silence counts for no stem, so that the number depends on which stems are scored together. A second has at most
    140 dB, where museval returns rounding errors.

    Source: museval 0.4.1 (github.com/sigsep/sigsep-mus-eval), arXiv 1804.06267.

    Args:
      references: one array (channel, sample) per stem, all of one shape.
      estimates: the estimate of each stem, of the same shape.
      sample_rate: Hz.

    Returns:
      dB for each stem, or NaN ("undefined") if its reference or estimate is silent or no second counts. museval
      refuses silent stems; here the other stems are scored without them.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    for reference in references:
        _check(**{"first reference": references[0], "reference": reference})
    pairs = zip(references, estimates, strict=True)
    return streaming_sdr.csdr([_sums_of_seconds(reference, estimate, sample_rate) for reference, estimate in pairs])


def museval_csdr(
    references: Sequence[Float[np.ndarray, "_ _"]],
    estimates: Sequence[Float[np.ndarray, ...]],
    *,
    sample_rate: int,
) -> list[float]:
    """Computes `csdr` with the museval package, which takes minutes and gigabytes for a song of four minutes.

    Raises:
      InputError: the shapes differ, a sample is not finite, or museval cannot be imported.
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
    """Imports and returns the museval package.

    Raises:
      InputError: museval is not installed, or the ffmpeg command is missing, which museval requires at import.
    """
    try:
        import museval
    except ModuleNotFoundError as error:
        raise InputError(f'museval needs {error.name}: install it with pip install "wroformer-jax[eval]"') from error
    except RuntimeError as error:  # museval imports musdb, which imports stempeg, which raises it
        raise InputError(f"museval cannot be used: {str(error).split('!')[0]}; install ffmpeg") from error
    return museval


def bleedless_fullness(
    reference: Float[np.ndarray, "channel sample"],
    estimate: Float[np.ndarray, ...],
    *,
    sample_rate: int = 44100,
) -> tuple[float, float]:
    """How free the estimate is of other sounds, and how much of the reference it keeps, each from 0 to 100.

    d is the mel spectrogram of the estimate minus that of the reference, in dB: magnitudes of an STFT (periodic
    Hann window of 4096 samples, hop 1024, zeros beyond the ends), librosa's 512 mel bands, 20 log10, floor 80 dB
    below the signal's own loudest point. The maximum and the means are over the points of all channels.
    bleedless = 100 / (1 + mean of the positive d), fullness = 100 / (1 - mean of the negative d). Each mean is
    over the points where d has that sign, and 0 if there are none.

    Source: `bleed_full` of ZFTurbo's Music-Source-Separation-Training (utils/metrics.py), which always takes the
    mel bands of 44100 Hz.

    Returns:
      (bleedless, fullness), both NaN ("undefined") for a silent reference.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    _check(reference=reference, estimate=estimate)
    recordings = (functools.partial(_seconds, audio, sample_rate) for audio in (reference, estimate))
    return bleedless.bleedless_fullness(*recordings, sample_rate=sample_rate)


def leakage_db(
    reference: Float[np.ndarray, "channel sample"],
    estimate: Float[np.ndarray, ...],
    mixture: Float[np.ndarray, ...],
    *,
    sample_rate: int = 44100,
) -> float:
    """Level of the estimate relative to the mixture where the reference is silent, in dB; lower is better.

    10 log10(sum estimate² / sum mixture²). The sums are over all half seconds in which the reference is silent (root
    mean square over the channels below -80 dB of full scale) and the mixture is not; the last half second may be
    shorter. 0 dB: everything leaks through. -140 dB is the minimum.

    Returns:
      dB, or NaN ("undefined") if there is no such half second.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    _check(reference=reference, mixture=mixture)
    mixture_halves = streaming_sdr.half_second_energies(_seconds(mixture, sample_rate), sample_rate=sample_rate)
    return streaming_sdr.leakage(_sums_of_seconds(reference, estimate, sample_rate), mixture_halves)


def mean_defined(decibels: Iterable[float]) -> float:
    """Returns the mean of the values that are defined (not NaN), or NaN if there are none."""
    defined = [value for value in decibels if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _sums_of_seconds(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> list[streaming_sdr.SecondSums]:
    _check(reference=reference, estimate=estimate)
    return streaming_sdr.sums_of_seconds(
        _seconds(reference, sample_rate), _seconds(estimate, sample_rate), sample_rate=sample_rate
    )


def _seconds(audio: np.ndarray, sample_rate: int) -> Iterator[np.ndarray]:
    return (audio[..., start : start + sample_rate] for start in range(0, audio.shape[-1], sample_rate))


def _check(**pair: np.ndarray) -> None:
    (name, audio), (other_name, other) = pair.items()
    if audio.shape != other.shape:
        raise InputError(f"the shapes of {name} {audio.shape} and {other_name} {other.shape} differ: make them equal")
    for name, audio in pair.items():
        if not np.all(np.isfinite(audio)):
            raise InputError(f"the {name} holds samples that are NaN or infinite")


def _heard(references: Sequence[np.ndarray], estimates: Sequence[np.ndarray]) -> list[int]:
    """Checks the arrays, and returns the indices of the stems that museval accepts: neither array is silent."""
    for reference, estimate in zip(references, estimates, strict=True):
        _check(reference=reference, estimate=estimate)
        _check(**{"first reference": references[0], "reference": reference})
    pairs = zip(references, estimates, strict=True)
    return [index for index, pair in enumerate(pairs) if all(np.any(audio.sum(axis=0)) for audio in pair)]
