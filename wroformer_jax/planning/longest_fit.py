"""The longest audio that fits into the memory of given devices, found by compiling as little as can be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

_DIGITS = 4  # of the lengths that are tried
_MOST = 30  # attempts: a tolerance of 1 % between a second and an hour takes 20 halvings
_MARGIN = 0.1  # at most, between where a line ends and the length that is tried
_LINES = 5  # attempts after which lines have had their chance


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One length, compiled."""

    seconds: float
    needed: int | None  # bytes a device, None if a refusal does not tell
    fits: bool


class Limits(NamedTuple):
    """Where a search ended."""

    fits: Attempt | None  # the longest that fits, None if the shortest there is does not
    too_long: Attempt | None  # the shortest that does not, None if the longest there is fits


def longest_fit(
    attempt: Callable[[float], Attempt],
    first: float,
    *,
    shortest: float,
    longest: float,
    available: int,
    at_rest: int,
    tolerance: float,
    known: Sequence[Attempt] = (),
) -> Limits:
    """The longest audio that fits, between a length that was compiled and fits and one that was and does not.

    Memory is close to linear in the length, so that the next length to try lies where a line through what is known
    meets what there is; where lines mislead, the interval is halved.

    Args:
      attempt: compiles a length in seconds.
      first: the length to begin with.
      shortest: there is, in seconds.
      longest: there is, in seconds.
      available: bytes of a device.
      at_rest: bytes that even no audio takes: the state.
      tolerance: how far apart the two lengths may be, as a fraction of the one that does not fit.
      known: what was attempted before.
    """
    tried = list(known)
    candidate = first
    for _ in range(_MOST):
        limits = _limits(tried)
        fits, too_long = limits
        if (fits and fits.seconds >= longest) or (too_long and too_long.seconds <= shortest):
            return limits
        if fits and too_long and fits.seconds >= (1 - tolerance) * too_long.seconds:
            return limits
        if tried:
            candidate = _next(tried, limits, shortest, longest, available, at_rest, tolerance)
        tried.append(attempt(candidate))
    return _limits(tried)


def _limits(tried: Sequence[Attempt]) -> Limits:
    return Limits(
        max((one for one in tried if one.fits), key=lambda one: one.seconds, default=None),
        min((one for one in tried if not one.fits), key=lambda one: one.seconds, default=None),
    )


def _next(
    tried: Sequence[Attempt],
    limits: Limits,
    shortest: float,
    longest: float,
    available: int,
    at_rest: int,
    tolerance: float,
) -> float:
    """The length to try next: just below where memory should end, then just above."""
    fits, too_long = limits
    low = fits.seconds if fits else shortest
    high = too_long.seconds if too_long else longest
    margin = min(tolerance / 3, _MARGIN)
    expected = _expected(tried, limits, available, at_rest)
    if fits is None:
        # What is no longer than this would fit by a line, so that even the shortest is too much if it is beyond it.
        wanted = math.sqrt(low * high) if expected is None else expected * (1 - margin)
        return _rounded(max(shortest, min(wanted, 0.9 * high)))
    misled = too_long and (len(tried) > _LINES or (len(tried) > 2 and high > 2 * low))
    if too_long is None and expected is not None and expected >= longest:
        wanted = longest
    elif expected is None or misled or not low < expected < high:
        wanted = math.sqrt(low * high)
    elif expected * (1 - margin) > low * (1 + margin):
        wanted = expected * (1 - margin)
    else:
        wanted = expected * (1 + margin)
    wanted = max(wanted, low * (1 + margin))
    if too_long is None:
        return longest if wanted >= longest else _rounded(wanted)
    return _rounded(min(wanted, high * (1 - margin)))


def _expected(tried: Sequence[Attempt], limits: Limits, available: int, at_rest: int) -> float | None:
    """Where a line through what is known meets what there is; None if nothing is known, or memory does not grow.

    It goes through the limits if the refusal tells its number, or else through the two longest that fit; where there is
    one length only, through it and the state alone.
    """
    told = sorted((one.seconds, one.needed) for one in tried if one.needed is not None)
    fitting = [point for point in told if point[1] <= available]
    if limits.fits is None or (limits.too_long and limits.too_long.needed):
        points = [*fitting[-1:], *[point for point in told if point not in fitting]][:2]
    else:
        points = fitting[-2:]
    if not points:
        return None
    (x0, y0), (x1, y1) = points if len(points) == 2 else [(0.0, at_rest), *points]
    if y1 <= y0:
        return None
    return x0 + (available - y0) * (x1 - x0) / (y1 - y0)


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{_DIGITS}g}")
