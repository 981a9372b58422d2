"""Times several ways of doing the same thing in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Run = Callable[[], object]  # does the thing once, and returns when it is done


def alternate(ways: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each way in each round. A run of each before the first round is not counted.

    Every other round goes backwards, so that no way always runs after the same other.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            times[name].append(seconds_of(ways[name]))
        shown = ", ".join(f"{name} {taken[-1]:.3g} s" for name, taken in times.items())
        print(f"  round {number + 1} of {rounds}: {shown}", file=sys.stderr, flush=True)
    return times


def seconds_of(run: Run) -> float:
    """Returns the seconds that one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compared(row: str, times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Returns a row for each way: its median seconds, and the time of the first way divided by its own.

    Ratios are taken within rounds; they come with their median and quartiles.
    """
    first = next(iter(times.values()))
    rows = []
    for name, taken in times.items():
        ratios = [ours / own for ours, own in zip(first, taken, strict=True)]
        low, middle, high = quartiles(ratios)
        rows.append(
            {
                "row": row,
                "what": name,
                "s": statistics.median(taken),
                "ours / it": middle,
                "quartiles": f"{low:.3f} to {high:.3f}",
                "rounds": len(taken),
            }
        )
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
