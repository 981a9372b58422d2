"""Writes the tables of compare.py into docs/performance.md, between markers, and draws its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from wroformer_jax.io.files import replacing

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = "performance.md"
_OURS, _PEERS = "#3b5bdb", ("#adb5bd", "#868e96", "#495057")


def write(folder: Path, device: str, command: str, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the device's section of the page in a folder, and its pictures.

    Args:
      folder: of the page and the pictures.
      device: "cpu" or "gpu".
      command: what printed the figures.
      measured: by row, the machine and the rows of its table.
    """
    parts = [f"Command: `{command}`. Ratios are ours divided by theirs: below 1, this package is faster or smaller."]
    tables = [
        ("Time in turn", [name for name in measured if name.startswith(("inference", "training"))]),
        ("Memory and compiling", ["memory"]),
        ("Where the forward pass takes its time", ["parts"]),
        ("First result: `wroformer separate` of 10 s with the quickstart's model", ["first-result"]),
    ]
    for title, names in tables:
        rows = [row for name in names if name in measured for row in measured[name]["rows"]]
        if rows:
            machines = sorted({measured[name]["machine"] for name in names if name in measured})
            parts.append(f"**{title}** ({'; '.join(machines)})\n\n{markdown(rows)}")
    if picture := draw(folder / f"performance_{device}.png", measured):
        parts.append(f"![Time of the peers relative to ours, and memory]({picture.name})")
    replace_between(folder / PAGE, f"compare {device}", "\n\n".join(parts))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as a table of Markdown; the keys of the first row are the headings."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(row.get(key, "")) for key in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replace_between(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; makes a page that is missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text(encoding="utf-8") if page.exists() else f"{begin}\n{end}\n"
    before, marker, rest = old.partition(begin)
    _, marker_after, after = rest.partition(end)
    if not marker or not marker_after:
        raise ValueError(f"{page} has no place for {name}: it lacks {begin} or {end}")
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def draw(path: Path, measured: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Draws bars of the peers' time and memory as multiples of ours; returns None if there is nothing to draw."""
    bars: list[tuple[str, list[tuple[str, float]]]] = []
    for name, found in measured.items():
        if name.startswith(("inference", "training")):
            kind, seconds = name.split("-")
            bars.append((f"{kind}\n{seconds} s", _multiples(found["rows"])))
    memory = measured.get("memory", {"rows": []})["rows"]
    for seconds in dict.fromkeys(row["audio s"] for row in memory):
        bars.append((f"memory\n{seconds:g} s", _multiples([row for row in memory if row["audio s"] == seconds])))
    if not bars:
        return None
    peers = list(dict.fromkeys(peer for _, multiples in bars for peer, _ in multiples))
    figure, axes = plt.subplots(figsize=(max(5.0, 1.8 + 1.3 * len(bars)), 4), layout="constrained")
    for number, peer in enumerate(peers):
        places = [(i, dict(multiples)[peer]) for i, (_, multiples) in enumerate(bars) if peer in dict(multiples)]
        x = [i + 0.25 * (number - (len(peers) - 1) / 2) for i, _ in places]
        drawn = axes.bar(x, [value for _, value in places], 0.23, color=_PEERS[number % len(_PEERS)], label=peer)
        axes.bar_label(drawn, fmt="%.2g", fontsize=8)
    axes.axhline(1, color=_OURS, label="ours")
    axes.set_xticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylabel("times ours")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _multiples(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Returns what each peer takes as a multiple of ours, which is the first row."""
    return [(row["what"], 1 / row["ours / it"]) for row in rows[1:]]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
