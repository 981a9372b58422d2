"""What fits where: the longest audio of a training step by chip, by `wroformer plan`, without a chip.

    pip install --no-deps libtpu==0.0.42.1
    python benchmarks/long_context.py

Published size, AdamW's whole state, one example a chip (or one cut over all of them), no teacher. Each row is a search
for the longest example, or one length; rows that are in benchmarks/results/long_context.json are not planned again.
Prints the table of docs/long_context.md and draws its picture of memory against length.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import RESULTS, print_table, write_result

ROOT = Path(__file__).parents[1]
GIB = 2**30
FULL = ["--time-mixer", "full"]
NAIVE = ["--time-mixer", "naive"]
AT_ONCE = ["--set", "model.places_at_once=0"]
OFFLOAD = ["--set", "model.remat=offload"]
HALF = ["--set", "model.stream_dtype=bfloat16"]
ONE, CUT8, CUT64 = "data=-1", "seq=8", "data=-1,seq=64"
# Name, topology, mesh, seconds, options.
ROWS: tuple[tuple[str, str, str, str, list[str]], ...] = (
    ("naive full attention, at once", "v5e:1x1", ONE, "max", [*NAIVE, *AT_ONCE]),
    ("naive full attention, in pieces", "v5e:1x1", ONE, "max", NAIVE),
    ("blocked full attention, in pieces", "v5e:1x1", ONE, "max", FULL),
    ("windowed sinks, at once", "v5e:1x1", ONE, "max", AT_ONCE),
    ("windowed sinks, in pieces", "v5e:1x1", ONE, "max", []),
    ("windowed sinks, in pieces, bfloat16 stream", "v5e:1x1", ONE, "max", HALF),
    ("windowed sinks, in pieces, offload", "v5e:1x1", ONE, "max", OFFLOAD),
    ("windowed sinks, in pieces, offload, bfloat16 stream", "v5e:1x1", ONE, "max", [*OFFLOAD, *HALF]),
    ("windowed sinks, in pieces", "v5e:2x4", CUT8, "max", []),
    ("windowed sinks, in pieces", "v5e:2x4", CUT8, "960", []),
    ("windowed sinks, in pieces", "v5e:16x16", CUT64, "3600", []),
    ("windowed sinks, in pieces", "v6e:1x1", ONE, "max", []),
    ("windowed sinks, in pieces", "v5p:2x2x1", ONE, "max", []),
    ("naive full attention, at once", "v6e:1x1", ONE, "max", [*NAIVE, *AT_ONCE]),
    ("naive full attention, at once", "v5p:2x2x1", ONE, "max", [*NAIVE, *AT_ONCE]),
    ("blocked full attention, in pieces", "v6e:1x1", ONE, "max", FULL),
    ("blocked full attention, in pieces", "v5p:2x2x1", ONE, "max", FULL),
)
# Of the picture: where the longest examples on several chips lie.
CURVES = ("naive full attention, at once", "blocked full attention, in pieces", "windowed sinks, in pieces")


def planned(topology: str, mesh: str, seconds: str, options: list[str]) -> dict[str, Any]:
    """What `wroformer plan` writes as JSON, or the sentence of its refusal."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "wroformer_jax.cli", "plan", "--config", "configs/long_context.py"]
        command += ["--no-teacher", "--topology", topology, "--mesh", mesh, "--seconds", seconds, "--json", str(file)]
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
        if file.exists():
            return json.loads(file.read_text())
    return {"refused": done.stderr.strip().splitlines()[-1]}


def row_of(name: str, topology: str, mesh: str, seconds: str, options: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "topology": topology, "mesh": mesh, "asked": seconds}
    found = planned(topology, mesh, seconds, options)
    if "refused" in found:
        return {**row, "fits s": "-", "not s": found["refused"][:80]}
    memory, longest = found["memory_bytes_per_device"], found.get("longest")
    too_long = longest and longest["too_long"]
    examples = found["batch_size"]
    return {
        **row,
        "fits s": found["seconds"],
        "not s": too_long["seconds"] if too_long else "-",
        "s a chip": found["seconds"] * examples / found["num_devices"],
        "state GiB": memory["state"] / GIB,
        "peak GiB": memory["peak"] / GIB,
        "of GiB": memory["available"] / GIB,
        "host GiB": memory["host"] / GIB,
        "TFLOP": found["flops"] / 1e12,
        "attention TFLOP": found["attention_flops"] / 1e12,
        "MiB sent": found["sent_bytes_per_device"] / 2**20,
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """Memory against length: each point is the longest example that fits into a chip."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in CURVES:
        points = sorted(
            (row["fits s"], row["peak GiB"])
            for row in rows
            if row["model"] == name and row["mesh"] == ONE and row["fits s"] != "-"
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    for chip, gib in (("v5e", 15.75), ("v6e", 31.25), ("v5p", 95.7)):
        axes.axhline(gib, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(chip, (10, gib), textcoords="offset points", xytext=(0, 2), fontsize=8, color="grey")
    ticks = (10, 20, 30, 60, 120, 300, 600, 1200)
    axes.set(xscale="log", yscale="log", xlabel="audio of the example, s", ylabel="memory of a chip, GiB")
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_yticks((16, 32, 64, 96), ("16", "32", "64", "96"))
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(ROOT / "docs" / "long_context.png", dpi=120)


def draw_parts() -> None:
    """What one of four devices needs of the others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, Rectangle

    figure, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
    colours = ("#4477aa", "#66ccee", "#228833", "#ccbb44")
    for device, colour in enumerate(colours):
        left = 11 * device
        axes.add_patch(Rectangle((left, 0), 1.4, 1, color="#ee6677"))
        axes.add_patch(Rectangle((left + 2, 0), 8, 1, color=colour))
        axes.text(left + 6, 0.5, f"frames of device {device}", ha="center", va="center", color="white")
        axes.text(left + 0.7, 0.5, "sinks", ha="center", va="center", color="white", rotation=90, fontsize=8)
        if device == 3:
            continue
        for start, stop, height, rad in ((left + 9.5, left + 13.5, 1.05, -0.5), (left + 13.5, left + 9.5, -0.05, -0.5)):
            arrow = FancyArrowPatch(
                (start, height), (stop, height), connectionstyle=f"arc3,rad={rad}", arrowstyle="->", mutation_scale=12
            )
            axes.add_patch(arrow)
    axes.text(11.5, 2.0, "halos: window // 2 frames of keys and values, half an STFT window of samples", fontsize=9)
    axes.text(
        0.2,
        -1.25,
        "sinks are everywhere: of their softmax over all frames a maximum and two sums are exchanged",
        fontsize=9,
    )
    axes.set(xlim=(-0.5, 43.5), ylim=(-1.5, 2.5))
    axes.axis("off")
    figure.savefig(ROOT / "docs" / "context_parallel.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)), help="numbers of rows, from 0")
    parser.add_argument("--no-picture", action="store_true", help="the table only")
    args = parser.parse_args()
    kept = RESULTS / "long_context.json"
    there = json.loads(kept.read_text())["rows"] if kept.exists() else []
    rows = {(row["model"], row["topology"], row["asked"]): row for row in there}
    for number in args.rows:
        name, topology, _, seconds, _ = ROWS[number]
        if (name, topology, seconds) not in rows:
            row = rows[name, topology, seconds] = row_of(*ROWS[number])
            print(row, file=sys.stderr, flush=True)
            write_result("long_context", f"python {' '.join(sys.argv)}", list(rows.values()))
    if not args.no_picture:
        draw(list(rows.values()))
        draw_parts()
    names = dict.fromkeys(name for row in rows.values() for name in row)
    print_table([{name: row.get(name, "-") for name in names} for row in rows.values()])


if __name__ == "__main__":
    main()
