"""Means and medians of scores over songs, with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

# The name of each metric in files, and its title in tables.
METRICS = {
    "usdr": "uSDR",
    "si_sdr": "SI-SDR",
    "csdr": "cSDR",
    "bleedless": "bleedless",
    "fullness": "fullness",
    "leakage": "leakage",
}

RESAMPLES = 10_000


def summarise(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Summarises the scores of one stem.

    Args:
      rows: the metrics of each song, NaN where a metric is undefined.

    Returns:
      For each metric: "songs", the number of songs where it is defined; "mean" and "median" over these, None if
      there are none; "mean_interval" and "median_interval", see `bootstrap_interval`.
    """
    summary = {}
    for metric in METRICS:
        values = np.array([row[metric] for row in rows.values() if not math.isnan(row[metric])])
        summary[metric] = {"songs": len(values)}
        for name, statistic in (("mean", np.mean), ("median", np.median)):
            summary[metric][name] = float(statistic(values)) if len(values) else None
            summary[metric][f"{name}_interval"] = bootstrap_interval(values, statistic)
    return summary


def bootstrap_interval(
    values: Float[np.ndarray, " song"], statistic: Callable[..., np.ndarray], *, seed: int = 0
) -> list[float] | None:
    """95 % confidence interval of a statistic over songs, from the percentiles of RESAMPLES resamplings.

    Efron's percentile bootstrap (Annals of Statistics 7, 1979). Equal values and seeds give equal intervals.

    Args:
      values: one value per song.
      statistic: np.mean or np.median; called with `axis`.
      seed: seed of the resampling.

    Returns:
      [low, high], or None for fewer than two songs, from which no interval can be estimated.
    """
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        batch=RESAMPLES // 10,  # bounds the memory for sets of many songs
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]
