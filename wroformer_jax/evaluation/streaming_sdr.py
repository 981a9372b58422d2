"""uSDR, SI-SDR, cSDR and leakage of recordings of any length, in memory for one second of audio.

A recording is a stream of seconds: arrays (channel, sample) of `sample_rate` samples each, of which the last one may be
shorter. Each second is reduced to a few sums in float64, from which all metrics follow. metrics.py defines the metrics
and names their sources. NaN means "undefined"; no metric is ever infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Ratios are clamped to +-140 dB. float32 audio has a range of about 138 dB, so a larger ratio means "equal".
_FLOOR = 1e-14
# Mean square, -80 dB of full scale: above the dither of 16 bits (-96 dB), and so low that what a reference itself holds
# there cannot be mistaken for leakage.
_SILENT = 1e-8

Seconds = Iterable[Float[np.ndarray, "*channel sample"]]


class Energy(NamedTuple):
    """Energy of half a second of audio, all channels together."""

    total: float  # sum of squares
    mean: float  # mean square


class SecondSums(NamedTuple):
    """Sums over the samples and channels of one second of a reference and its estimate."""

    is_whole: bool  # False for a shorter second at the end
    reference: float  # sum of reference²
    error: float  # sum of (estimate - reference)²
    scale: float  # the factor that brings the reference nearest to the estimate
    residual: float  # sum of (estimate - scale * reference)²
    has_reference: bool  # whether the sum of the reference's channels is not silent
    has_estimate: bool  # the same for the estimate
    halves: tuple[tuple[Energy, Energy], ...]  # (reference, estimate) of each half; one half if the end lies in it


def sums_of_seconds(references: Seconds, estimates: Seconds, *, sample_rate: int) -> list[SecondSums]:
    """Returns the sums of each second, reading both streams once. They must be equally long."""
    return [_sums_of_second(*pair, sample_rate) for pair in zip(references, estimates, strict=True)]


def half_second_energies(seconds: Seconds, *, sample_rate: int) -> list[tuple[Energy, ...]]:
    """Returns the energies of the halves of each second, cut as in `SecondSums.halves`."""
    return [_halves(second.astype(np.float64), sample_rate) for second in seconds]


def usdr(stem: Sequence[SecondSums]) -> float:
    """Signal-to-distortion ratio of the whole track in dB; see `metrics.usdr`."""
    signal = math.fsum(second.reference for second in stem)
    return _decibels(signal, math.fsum(second.error for second in stem)) if signal else math.nan


def si_sdr(stem: Sequence[SecondSums]) -> float:
    """Scale-invariant SDR in dB; see `metrics.si_sdr`.

    The distance between the estimate and the scaled reference is the sum of two terms: the residual within each second
    at that second's own best scale, and the reference's energy times the squared difference of that scale from the
    scale of the whole track. Both are positive, so nothing cancels.
    """
    energy = math.fsum(second.reference for second in stem)
    if not energy:
        return math.nan
    scale = math.fsum(second.scale * second.reference for second in stem) / energy
    noise = math.fsum(second.residual + (second.scale - scale) ** 2 * second.reference for second in stem)
    signal = scale**2 * energy
    return _decibels(signal, noise) if signal + noise else math.nan


def csdr(stems: Sequence[Sequence[SecondSums]]) -> list[float]:
    """Median SDR over seconds in dB, one for each of the stems that are scored together; see `metrics.csdr`."""
    decibels: dict[int, list[float]] = {
        index: []
        for index, stem in enumerate(stems)
        if any(second.has_reference for second in stem) and any(second.has_estimate for second in stem)
    }
    for number, together in enumerate(zip(*(stems[index] for index in decibels), strict=True)):
        is_counted = number == 0 or together[0].is_whole
        if is_counted and all(second.has_reference and second.has_estimate for second in together):
            for values, second in zip(decibels.values(), together, strict=True):
                values.append(_decibels(second.reference, second.error))
    return [float(np.median(decibels[index])) if decibels.get(index) else math.nan for index in range(len(stems))]


def leakage(stem: Sequence[SecondSums], mixture: Sequence[tuple[Energy, ...]]) -> float:
    """Level of the estimate in dB where the reference is silent and the mixture is not; see `metrics.leakage_db`.

    Args:
      stem: the sums of a reference and its estimate.
      mixture: the `half_second_energies` of the song's mixture.
    """
    pauses = [
        (estimate.total, mixed.total)
        for second, mixed_halves in zip(stem, mixture, strict=True)
        for (reference, estimate), mixed in zip(second.halves, mixed_halves, strict=True)
        if reference.mean < _SILENT <= mixed.mean
    ]
    if not pauses:
        return math.nan
    leaked, mixed = (math.fsum(side) for side in zip(*pauses, strict=True))
    return 10 * math.log10(max(leaked / mixed, _FLOOR))


def _sums_of_second(
    reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*channel sample"], sample_rate: int
) -> SecondSums:
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    energy = float(np.sum(reference**2))
    scale = float(np.sum(reference * estimate)) / energy if energy else 0.0
    return SecondSums(
        is_whole=reference.shape[-1] == sample_rate,
        reference=energy,
        error=float(np.sum((estimate - reference) ** 2)),
        scale=scale,
        residual=float(np.sum((estimate - scale * reference) ** 2)),
        has_reference=_is_heard(reference),
        has_estimate=_is_heard(estimate),
        halves=tuple(zip(_halves(reference, sample_rate), _halves(estimate, sample_rate), strict=True)),
    )


def _is_heard(audio: Float[np.ndarray, "*channel sample"]) -> bool:
    """Whether the sum of the channels has a sample that is not zero, which is how museval recognises silence."""
    return bool(np.any(audio.sum(axis=tuple(range(audio.ndim - 1)))))


def _halves(second: Float[np.ndarray, "*channel sample"], sample_rate: int) -> tuple[Energy, ...]:
    parts = (second[..., : sample_rate // 2], second[..., sample_rate // 2 :])
    return tuple(Energy(total := float(np.sum(part**2)), total / part.size) for part in parts if part.size)


def _decibels(signal: float, noise: float) -> float:
    floor = _FLOOR * (signal + noise)
    return 10 * math.log10(max(signal, floor) / max(noise, floor))
