"""Aligned tables for terminals and logs. Every table that a command prints is written by `aligned`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

Row = Sequence[str]  # of a table

SCORES_LEGEND = "uSDR, SI-SDR, cSDR and leakage in dB, bleedless and fullness from 0 to 100; '-' is undefined"


def aligned(
    rows: Sequence[Row], *, left: int = 1, last_left: bool = False, rules: Collection[int] = (), indent: int = 0
) -> str:
    """Returns the rows as lines of columns, two spaces apart; numbers stand right.

    Args:
      rows: of equal length, the headings first.
      left: number of the first columns that stand left.
      last_left: let the last column stand left, too.
      rules: rows that get a rule of dashes above them.
      indent: spaces before each line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    stand_left = [i < left or (last_left and i == len(widths) - 1) for i in range(len(widths))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, stand_left, strict=True)
        ]
        if number in rules:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(" " * indent + line for line in lines)


def scores_table(stem: str, rows: Mapping[str, Mapping[str, float]], *, signed: bool = False) -> str:
    """Returns a stem's scores as a table: a line per song, then means and medians with their intervals.

    Args:
      stem: its name.
      rows: scores by song and metric, see `Results.by_stem` and `differences`.
      signed: write the sign of positive numbers too, for differences.
    """
    from wroformer_jax.evaluation.statistics import METRICS, summarise

    sign = "+" if signed else ""
    summary = summarise(rows)

    def number(value: float | None) -> str:
        return "-" if value is None or math.isnan(value) else format(value, f"{sign}.2f")

    def interval(bounds: Sequence[float] | None) -> str:
        return "-" if bounds is None else f"{number(bounds[0])}..{number(bounds[1])}"

    lines: list[Row] = [[stem, *METRICS.values()]]
    lines += [[song, *(number(value) for value in row.values())] for song, row in rows.items()]
    for statistic in ("mean", "median"):
        lines.append([statistic, *(number(summary[metric][statistic]) for metric in METRICS)])
        lines.append(["  95 % interval", *(interval(summary[metric][f"{statistic}_interval"]) for metric in METRICS)])
    lines.append(["songs", *(str(summary[metric]["songs"]) for metric in METRICS)])
    return aligned(lines, rules=(1, len(rows) + 1))


def models_table() -> str:
    """Returns the known checkpoints as a table."""
    from wroformer_jax.config.known_checkpoints import KNOWN_CHECKPOINTS

    rows: list[Row] = [("NAME", "WHAT IT IS", "SIZE", "LICENCE", "FROM")]
    rows += [(name, k.about, k.size, k.licence, k.source) for name, k in KNOWN_CHECKPOINTS.items()]
    return aligned(rows, left=len(rows[0]))


def set_table(rows: Sequence[Row]) -> str:
    """Returns the songs, hours and silence of each stem of a prepared set as a table; see `Prepared.rows`."""
    return aligned(rows, left=2, rules=(1,))
