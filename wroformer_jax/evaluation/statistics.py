"""Sums up scores over songs, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# As they are called in files, and as they are printed.
METRICS = {
    "usdr": "uSDR",
    "si_sdr": "SI-SDR",
    "csdr": "cSDR",
    "bleedless": "bleedless",
    "fullness": "fullness",
    "leakage": "leakage",
}


RESAMPLES = 10_000


_SEED = 0


def summarise(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Of each metric: the songs where it is defined, mean, median, and their 95 % bootstrap intervals; or None."""
    summary = {}
    for metric in METRICS:
        values = np.array([row[metric] for row in rows.values() if not math.isnan(row[metric])])
        summary[metric] = {"songs": len(values)}
        for name, statistic in (("mean", np.mean), ("median", np.median)):
            summary[metric][name] = float(statistic(values)) if len(values) else None
            summary[metric][f"{name}_interval"] = bootstrap_interval(values, statistic)
    return summary


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray], *, seed: int = _SEED
) -> list[float] | None:
    """95 % interval of a statistic over songs, by the percentiles of RESAMPLES resamplings with replacement.

    Efron's percentile bootstrap (Annals of Statistics 7, 1979); always the same for the same values.

    Args:
      values: one for each song, (song,).
      statistic: np.mean or np.median, called with `axis=1`.
      seed: of the resampling.

    Returns:
      [low, high], or None for fewer than two songs, which say nothing of others.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    resampled = np.concatenate(
        [statistic(values[rng.integers(len(values), size=(RESAMPLES // 10, len(values)))], axis=1) for _ in range(10)]
    )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return [float(low), float(high)]
