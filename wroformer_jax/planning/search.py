"""Searches for the longest audio that fits into the memory of given devices.

An attempt compiles a program, which takes half a minute, so the search makes few of them: it guesses from the memory of
earlier attempts, because memory is close to linear in the length, and bisects where that misleads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

_GUESSES = 3  # attempts after which a line between the limits has had its chance
_NEARLY_FULL, _STEP = 0.9, 1.25  # longest step from a length that takes so much of the memory beside the state
_MARGIN = 0.1  # largest distance between a guess and the end of its line, as a fraction
_DIGITS = 4  # of the lengths that are tried


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One length, compiled."""

    seconds: float
    needed: int | None  # bytes per device, None if the compiler refused without a number
    fits: bool


class Limits(NamedTuple):
    """The end of a search."""

    fits: Attempt | None  # the longest that fits, None if even the shortest does not
    too_long: Attempt | None  # the shortest that does not fit, None if even the longest does


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The lengths and the memory between which to search."""

    shortest: float  # seconds
    longest: float  # seconds
    available: int  # bytes per device
    at_rest: int  # bytes per device that the state takes without any audio
    tolerance: float  # largest distance of the two limits, as a fraction of the one that does not fit


def find_longest_fit(
    attempt: Callable[[float], Attempt], first: float, bounds: Bounds, known: Sequence[Attempt] = ()
) -> Limits:
    """Returns a length that fits and one that does not, both compiled and close to each other.

    Args:
      attempt: compiles a length in seconds.
      first: the length to begin with, in seconds.
      bounds: of the search.
      known: earlier attempts.
    """
    tried = list(known)
    while not _close(limits := _limits(tried), bounds):
        tried.append(attempt(_next(tried, limits, bounds) if tried else first))
    return limits


def _limits(tried: Sequence[Attempt]) -> Limits:
    return Limits(
        max((one for one in tried if one.fits), key=lambda one: one.seconds, default=None),
        min((one for one in tried if not one.fits), key=lambda one: one.seconds, default=None),
    )


def _close(limits: Limits, bounds: Bounds) -> bool:
    fits, too_long = limits
    if fits and too_long:
        return fits.seconds >= (1 - bounds.tolerance) * too_long.seconds
    if fits:
        return fits.seconds >= bounds.longest
    return too_long is not None and too_long.seconds <= bounds.shortest


def _next(tried: Sequence[Attempt], limits: Limits, bounds: Bounds) -> float:
    """Returns the length to try next: just below the end of the line, then just above it, or half-way."""
    fits, too_long = limits
    low = fits.seconds if fits else bounds.shortest
    high = too_long.seconds if too_long else bounds.longest
    margin = min(bounds.tolerance / 3, _MARGIN)
    misled = fits and too_long and (len(tried) > _GUESSES or (len(tried) > 2 and high > 2 * low))
    end = None if misled else _end_of_line(tried, bounds)
    if end is None:
        wanted = math.sqrt(low * high)
    elif fits is None or end * (1 - margin) > low * (1 + margin):
        wanted = end * (1 - margin)
    else:
        wanted = end * (1 + margin)
    if fits and not too_long and fits.needed and _is_nearly_full(fits.needed, bounds):
        wanted = min(wanted, low * _STEP)  # compilers save memory where it runs out, so lines are flat there
    if fits:
        wanted = max(wanted, low * (1 + margin))
    elif wanted <= low * (1 + bounds.tolerance):
        return low
    if too_long:
        wanted = min(wanted, high * (1 - margin))
    elif wanted >= high * (1 - bounds.tolerance):
        return high
    return float(f"{wanted:.{_DIGITS}g}")


def _is_nearly_full(needed: int, bounds: Bounds) -> bool:
    """Whether most of the memory that the state leaves is used."""
    return needed - bounds.at_rest > _NEARLY_FULL * (bounds.available - bounds.at_rest)


def _end_of_line(tried: Sequence[Attempt], bounds: Bounds) -> float | None:
    """Returns the seconds at which memory would run out if it were linear, None if it does not grow or is not known.

    The line goes through the two known points that are nearest to the end, the state without audio being one.
    """
    told = sorted((one.seconds, one.needed) for one in tried if one.needed)
    below = [(0.0, bounds.at_rest), *(point for point in told if point[1] <= bounds.available)]
    above = [point for point in told if point[1] > bounds.available]
    is_fitting_known = len(below) > 1
    points = [*below, *above[: 1 if is_fitting_known else 2]][-2:]
    if len(points) < 2 or points[1][1] <= points[0][1]:
        return None
    (x0, y0), (x1, y1) = points
    return x0 + (bounds.available - y0) * (x1 - x0) / (y1 - y0)
