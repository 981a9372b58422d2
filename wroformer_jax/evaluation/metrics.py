"""Numbers that say how good a separation is, computed on the host, ratios in float64.

These are functions of arrays, with their definitions and sources; framewise.py and mel.py compute the same numbers
from streams, in bounded memory. A stem that is silent throughout has no signal-to-distortion ratio: the functions
return NaN, which means "undefined" here, and `mean_defined` leaves such songs out. Infinities are never returned, so
never averaged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import bleedless, streaming_sdr

_RATE = 44100  # Hz, for metrics that do not depend on it


def usdr(reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*shape"]) -> float:
    """Signal-to-distortion ratio of a whole track: 10 log10(sum reference² / sum (reference - estimate)²), dB.

    The "new SDR" of the Music Demixing Challenge 2021 (arXiv 2108.13559): sums over samples and channels.
    A silent estimate has 0 dB; at most 140 dB, for an estimate that equals its reference.

    Returns:
      dB, or NaN ("undefined") for a silent reference.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    return streaming_sdr.usdr(_frames(reference, estimate, _RATE))


def si_sdr(reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*shape"]) -> float:
    """Scale-invariant SDR (Le Roux et al., arXiv 1811.02508), all channels together with one scale, in dB.

    10 log10(sum target² / sum (estimate - target)²), target = reference * sum reference estimate / sum reference².
    Means are not subtracted.

    Returns:
      dB between -140 and 140, or NaN ("undefined") for a silent reference or a silent estimate.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    return streaming_sdr.si_sdr(_frames(reference, estimate, _RATE))


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
    for reference in references:
        _check(**{"first reference": references[0], "reference": reference})
    pairs = zip(references, estimates, strict=True)
    return streaming_sdr.csdr([_frames(reference, estimate, sample_rate) for reference, estimate in pairs])


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
    _check(reference=reference, estimate=estimate)
    streams = (functools.partial(_seconds, audio, sample_rate) for audio in (reference, estimate))
    return bleedless.bleedless_fullness(*streams, sample_rate=sample_rate)


def leakage_db(
    reference: Float[np.ndarray, "channel sample"],
    estimate: Float[np.ndarray, ...],
    mixture: Float[np.ndarray, ...],
    *,
    sample_rate: int = 44100,
) -> float:
    """The level of the estimate where the reference is silent, relative to the mixture's there, in dB.

    10 log10(sum estimate² / sum mixture²), the sums over all the frames of half a second in which the reference is
    silent (below -80 dB of full scale, root mean square over the channels) and the mixture is not; the last frame
    may be shorter. 0 dB lets everything through; the lower, the better; at least -140 dB.

    Returns:
      dB, or NaN ("undefined") where no frame is like that.

    Raises:
      InputError: the shapes differ, or a sample is not finite.
    """
    _check(reference=reference, mixture=mixture)
    offered = streaming_sdr.halves(_seconds(mixture, sample_rate), sample_rate=sample_rate)
    return streaming_sdr.leakage(_frames(reference, estimate, sample_rate), offered)


def mean_defined(decibels: Iterable[float]) -> float:
    """Mean of the values that are defined (not NaN); NaN if none is."""
    defined = [value for value in decibels if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _frames(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> list[streaming_sdr.Frame]:
    _check(reference=reference, estimate=estimate)
    return streaming_sdr.frames(
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
    """Checks the arrays; the stems of which neither reference nor estimate is silent, as museval sees silence."""
    for reference, estimate in zip(references, estimates, strict=True):
        _check(reference=reference, estimate=estimate)
        _check(**{"first reference": references[0], "reference": reference})
    pairs = zip(references, estimates, strict=True)
    return [index for index, pair in enumerate(pairs) if all(np.any(audio.sum(axis=0)) for audio in pair)]
