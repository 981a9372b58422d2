"""Aligned tables for terminals and logs."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wroformer_jax.config.known_checkpoints import KNOWN_CHECKPOINTS
from wroformer_jax.evaluation.statistics import METRICS, summarise

if TYPE_CHECKING:
    pass


Row = Sequence[str]  # of a table


def aligned(rows: Sequence[Row], *, left: int = 1, last_left: bool = False) -> str:
    """Columns with two spaces between them; numbers stand right.

    Args:
      rows: of equal length, the headings first.
      left: how many of the first columns stand left.
      last_left: whether the last one does, too.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    stand_left = [i < left or (last_left and i == len(widths) - 1) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, stand_left, strict=True)
        ).rstrip()
        for row in rows
    )


LEGEND = "uSDR, SI-SDR, cSDR and leakage in dB, bleedless and fullness from 0 to 100; '-' is undefined"


def scores_table(stem: str, rows: Mapping[str, Mapping[str, float]], *, signed: bool = False) -> str:
    """The scores of a stem as aligned text: a song a line, then means and medians with their intervals.

    Args:
      stem: its name.
      rows: of `Results.by_stem` or `differences`.
      signed: writes the sign of positive numbers too, for differences.
    """
    sign = "+" if signed else ""
    summary = summarise(rows)

    def number(value: float | None) -> str:
        return "-" if value is None or math.isnan(value) else format(value, f"{sign}.2f")

    def interval(bounds: list[float] | None) -> str:
        return "-" if bounds is None else f"{number(bounds[0])}..{number(bounds[1])}"

    lines = [[stem, *METRICS.values()]]
    lines += [[song, *(number(value) for value in row.values())] for song, row in rows.items()]
    for statistic in ("mean", "median"):
        lines.append([statistic, *(number(summary[metric][statistic]) for metric in METRICS)])
        lines.append(["  95 % interval", *(interval(summary[metric][f"{statistic}_interval"]) for metric in METRICS)])
    lines.append(["songs", *(str(summary[metric]["songs"]) for metric in METRICS)])
    widths = [max(_width(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [_score_line(line, widths) for line in lines]
    rule = "-" * _width(texts[0])
    return "\n".join([texts[0], rule, *texts[1:-5], rule, *texts[-5:]])


def _score_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padding = [" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([cells[0] + padding[0], *(p + cell for p, cell in zip(padding[1:], cells[1:], strict=True))])


def _width(text: str) -> int:
    """Columns of a terminal: letters of East Asia take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def models_table() -> str:
    """The known checkpoints as an aligned table, one line each below a line of headings."""
    rows = [("NAME", "WHAT IT IS", "SIZE", "LICENCE", "FROM")]
    rows += [(name, k.about, k.size, k.licence, k.source) for name, k in KNOWN_CHECKPOINTS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
