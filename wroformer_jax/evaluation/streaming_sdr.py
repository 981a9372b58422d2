"""Metrics in dB of recordings of any length: a few sums are kept of every second, and all metrics follow from them.

A recording is a stream of seconds: blocks (channel, sample) of `sample_rate` samples each but for the last one, which
may be shorter. Sums are in float64. NaN means "undefined", and no infinity is ever returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Ratios are clamped to +-140 dB: float32 audio holds about 138 dB, so more than that says "equal".
_FLOOR = 1e-14
# Above the dither of 16 bits (-96 dB), and so low that what a reference itself holds there cannot pass for leakage.
_SILENT = 1e-8  # mean square, -80 dB of full scale

Seconds = Iterable[Float[np.ndarray, "*channel sample"]]


class Energy(NamedTuple):
    """Of half a second, all channels."""

    total: float  # sum of squares
    mean: float  # square


class Frame(NamedTuple):
    """What is kept of a second of a reference and its estimate, sums over samples and channels."""

    is_whole: bool  # not the shorter one at the end
    reference: float  # sum of reference²
    error: float  # sum of (estimate - reference)²
    scale: float  # of the reference, that brings it nearest to the estimate
    residual: float  # sum of (estimate - scale * reference)²
    has_reference: bool  # its channels do not add up to silence
    has_estimate: bool
    halves: tuple[tuple[Energy, Energy], ...]  # of reference and estimate, two unless the end is in the first one


def frames(references: Seconds, estimates: Seconds, *, sample_rate: int) -> list[Frame]:
    """Goes through a stem's reference and estimate, which must be equally long, once."""
    return [_frame(*pair, sample_rate) for pair in zip(references, estimates, strict=True)]


def halves(seconds: Seconds, *, sample_rate: int) -> list[tuple[Energy, ...]]:
    """The energies in the halves of every second, as frames have them."""
    return [_halves(second.astype(np.float64), sample_rate) for second in seconds]


def usdr(stem: Sequence[Frame]) -> float:
    """Signal-to-distortion ratio of the whole track; see metrics.py."""
    signal = math.fsum(frame.reference for frame in stem)
    return _decibels(signal, math.fsum(frame.error for frame in stem)) if signal else math.nan


def si_sdr(stem: Sequence[Frame]) -> float:
    """Scale-invariant SDR; see metrics.py.

    The distance to the scaled reference is that within each second, which is measured from the second's own best
    scale, plus what the scales of the seconds differ by: positive terms only, so that nothing cancels.
    """
    energy = math.fsum(frame.reference for frame in stem)
    if not energy:
        return math.nan
    scale = math.fsum(frame.scale * frame.reference for frame in stem) / energy
    noise = math.fsum(frame.residual + (frame.scale - scale) ** 2 * frame.reference for frame in stem)
    signal = scale**2 * energy
    return _decibels(signal, noise) if signal + noise else math.nan


def csdr(stems: Sequence[Sequence[Frame]]) -> list[float]:
    """Median over seconds, for each of the stems that are scored together; see metrics.py."""
    decibels: dict[int, list[float]] = {
        index: []
        for index, stem in enumerate(stems)
        if any(frame.has_reference for frame in stem) and any(frame.has_estimate for frame in stem)
    }
    for number, together in enumerate(zip(*(stems[index] for index in decibels), strict=True)):
        is_counted = number == 0 or together[0].is_whole
        if is_counted and all(frame.has_reference and frame.has_estimate for frame in together):
            for values, frame in zip(decibels.values(), together, strict=True):
                values.append(_decibels(frame.reference, frame.error))
    return [float(np.median(decibels[index])) if decibels.get(index) else math.nan for index in range(len(stems))]


def leakage(stem: Sequence[Frame], mixture: Sequence[tuple[Energy, ...]]) -> float:
    """Level of the estimate where the reference is silent and the mixture is not; see metrics.py."""
    pauses = [
        (estimate.total, offered.total)
        for frame, heard in zip(stem, mixture, strict=True)
        for (reference, estimate), offered in zip(frame.halves, heard, strict=True)
        if reference.mean < _SILENT <= offered.mean
    ]
    if not pauses:
        return math.nan
    leaked, offered = (math.fsum(side) for side in zip(*pauses, strict=True))
    return 10 * math.log10(max(leaked / offered, _FLOOR))


def _frame(
    reference: Float[np.ndarray, "*channel sample"], estimate: Float[np.ndarray, "*channel sample"], sample_rate: int
) -> Frame:
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    energy = float(np.sum(reference**2))
    scale = float(np.sum(reference * estimate)) / energy if energy else 0.0
    return Frame(
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
    return bool(np.any(audio.sum(axis=tuple(range(audio.ndim - 1)))))


def _halves(second: Float[np.ndarray, "*channel sample"], sample_rate: int) -> tuple[Energy, ...]:
    parts = (second[..., : sample_rate // 2], second[..., sample_rate // 2 :])
    return tuple(Energy(total := float(np.sum(part**2)), total / part.size) for part in parts if part.size)


def _decibels(signal: float, noise: float) -> float:
    floor = _FLOOR * (signal + noise)
    return 10 * math.log10(max(signal, floor) / max(noise, floor))
