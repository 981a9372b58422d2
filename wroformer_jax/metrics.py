"""Numbers that say how good a separation is, in dB, computed in float64 on the host.

A stem that is silent throughout has no signal-to-distortion ratio: the functions return NaN, which means
"undefined" here, and `mean_defined` leaves such songs out. Infinities are never returned, so never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from wroformer_jax.errors import InputError

# Ratios are clamped to +-140 dB: float32 audio holds about 138 dB, so more than that says "equal".
_FLOOR = 1e-14


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


def _decibels(signal: float, noise: float) -> float:
    floor = _FLOOR * (signal + noise)
    return float(10 * np.log10(max(signal, floor) / max(noise, floor)))
