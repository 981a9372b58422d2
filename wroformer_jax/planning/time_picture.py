"""The picture of where the time of a program goes: a stacked bar of its parts for each of the two counts."""

from __future__ import annotations

import os

from wroformer_jax.io.files import replacing
from wroformer_jax.planning.time_parts import TimeCount

_LEAST_LABEL = 0.045  # of the longer bar: a thinner part has no number in it


def save_times(path: str | os.PathLike, count: TimeCount, *, title: str) -> None:
    """Writes a PNG with two stacked bars, the compiler's estimate and the schedule, in milliseconds.

    Args:
      path: of the PNG; an earlier one is replaced once the new one is complete.
      count: the times.
      title: the line above the bars.
    """
    # pyplot would open a window or keep global state; this always uses the Agg renderer.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    whole = count.whole
    rows = {"estimated": "compiler's estimate", "scheduled": "schedule"}
    longest = max(whole.estimated, whole.scheduled)
    left = dict.fromkeys(rows, 0.0)
    for number, (name, part) in enumerate(count.parts.items()):
        colour = colormaps["tab20"](number)
        for row, which in enumerate(rows):
            seconds = getattr(part, which)
            label = name if which == "estimated" else None
            axis.barh(row, 1000 * seconds, left=1000 * left[which], color=colour, label=label, edgecolor="white")
            if seconds > _LEAST_LABEL * longest:
                middle = 1000 * (left[which] + seconds / 2)
                axis.text(middle, row, f"{1000 * seconds:.3g}", ha="center", va="center", fontsize=8)
            left[which] += seconds
    axis.set_yticks(range(len(rows)), list(rows.values()))
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(
        f"time (ms): {_total(count, 'estimated')} by the estimate, {_total(count, 'scheduled')} by schedule"
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _total(count: TimeCount, which: str) -> str:
    whole = count.whole
    seconds = getattr(whole, which)
    share = count.share(whole.flops, seconds)
    return f"{1000 * seconds:.3g}" + (f" ({share:.0%} of peak)" if share else "")
