"""Draws docs/windowed_sinks.png: which tokens attend to which, and the cost against the length of the audio.

    python benchmarks/attention_picture.py

Costs are counted as in arXiv 2510.25745, for one head and frames of 10 ms: frames squared for full attention, frames
times (window + sinks) for windowed sinks. The masks have fewer frames than 8 s of audio.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

PICTURE = Path(__file__).parents[1] / "docs" / "windowed_sinks.png"
FRAMES, WINDOW, SINKS = 48, 10, 4  # of the drawn masks
PUBLISHED_WINDOW, PUBLISHED_SINKS, FRAMES_PER_SECOND = 10, 8, 100
FULL, WINDOWED, SINK = "#8f97a3", "#3566a8", "#d1495b"


def draw_full(axes: Axes) -> None:
    axes.imshow(np.ones((FRAMES, FRAMES)), cmap=ListedColormap([FULL]))
    axes.set(title="full attention", xlabel="frame that is seen", ylabel="frame that looks")


def draw_windowed(axes: Axes) -> None:
    tokens = np.arange(SINKS + FRAMES)
    queries, keys = tokens[:, None], tokens[None, :]
    sinks = (queries < SINKS) | (keys < SINKS)
    window = np.abs(queries - keys) <= WINDOW // 2
    seen = np.where(sinks, 2, np.where(window, 1, 0))
    axes.imshow(seen, cmap=ListedColormap(["white", WINDOWED, SINK]))
    axes.text(SINKS + 0.66 * FRAMES, SINKS + 0.4 * FRAMES, "window", color=WINDOWED)
    axes.text(SINKS + 0.04 * FRAMES, SINKS + 0.82 * FRAMES, "sinks", color=SINK)
    axes.set(title="windowed sink attention", xlabel="token that is seen", ylabel="token that looks")


def draw_costs(axes: Axes) -> None:
    seconds = np.array([1, 8, 60, 600, 3600])
    frames = seconds * FRAMES_PER_SECOND + 1
    windowed = frames * (PUBLISHED_WINDOW + PUBLISHED_SINKS)
    axes.loglog(seconds, frames**2, color=FULL, marker="o")
    axes.loglog(seconds, windowed, color=WINDOWED, marker="o")
    for values, colour, offset in ((frames**2, FULL, (-6, 8)), (windowed, WINDOWED, (6, -14))):
        align = "right" if offset[0] < 0 else "left"
        axes.annotate(
            f"{values[1]:,}", (8, values[1]), textcoords="offset points", xytext=offset, color=colour, ha=align
        )
    axes.annotate("full", (600, frames[3] ** 2.0), textcoords="offset points", xytext=(-8, 8), color=FULL, ha="right")
    axes.annotate("windowed sinks", (600, windowed[3]), textcoords="offset points", xytext=(-30, -18), color=WINDOWED)
    axes.set_xticks(seconds, ("1 s", "8 s", "1 min", "10 min", "1 h"))
    axes.minorticks_off()
    axes.set(title="scores per head", xlabel="length of the audio", ylim=(1e3, 1e12))
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained", width_ratios=(1, 1, 1.25))
    draw_full(panels[0])
    draw_windowed(panels[1])
    draw_costs(panels[2])
    for panel in panels[:2]:
        panel.set(xticks=[], yticks=[])
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
