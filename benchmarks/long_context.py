"""Plans the longest audio of a training step on each kind of chip, with `wroformer plan`, without a chip.

    pip install --no-deps libtpu==0.0.42.1
    python benchmarks/long_context.py

Published size, the whole state of AdamW, one example per chip (or one cut over all chips), no teacher unless a row says
so. A row is a search for the longest example, or one length. Rows that are in benchmarks/results/long_context.json are
not planned again. Writes the tables of docs/long_context.md, and draws its picture of memory and FLOPs against length.
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

from wroformer_jax.io.files import replacing

ROOT = Path(__file__).parents[1]
GIB = 2**30
ALONE = ("--no-teacher",)
FULL = (*ALONE, "--time-mixer", "full")
NAIVE = (*ALONE, "--time-mixer", "naive")
AT_ONCE = ("--set", "model.places_at_once=0")
OFFLOAD = ("--set", "model.remat=offload")
HALF = ("--set", "model.stream_dtype=bfloat16")
# The compared models, and their options of `wroformer plan`.
MODELS = {
    "naive full attention, at once": (*NAIVE, *AT_ONCE),
    "naive full attention, in pieces": NAIVE,
    "blocked full attention, in pieces": FULL,
    "windowed sinks, at once": (*ALONE, *AT_ONCE),
    "windowed sinks, in pieces": ALONE,
    "windowed sinks, in pieces, bfloat16 stream": (*ALONE, *HALF),
    "windowed sinks, in pieces, offload": (*ALONE, *OFFLOAD),
    "windowed sinks, in pieces, offload, bfloat16 stream": (*ALONE, *OFFLOAD, *HALF),
    "windowed sinks, in pieces, with a teacher": (),
}
# The curves of the picture go through the longest examples that fit into these chips.
CURVES = ("naive full attention, at once", "blocked full attention, in pieces", "windowed sinks, in pieces")
CHIPS = ("v5e:1x1", "v6e:1x1", "v5p:2x2x1")
ONE, CUT8, CUT64 = "data=-1", "seq=8", "data=-1,seq=64"
# Model, topology, mesh, seconds.
ROWS = (
    *((model, "v5e:1x1", ONE, "max") for model in MODELS),
    ("windowed sinks, in pieces", "v4:2x2x1", ONE, "max"),
    *((model, chip, ONE, "max") for chip in CHIPS[1:] for model in CURVES),
    ("windowed sinks, in pieces", "v5e:2x4", CUT8, "max"),
    ("windowed sinks, in pieces", "v5e:2x4", CUT8, "960"),
    ("windowed sinks, in pieces", "v5e:16x16", CUT64, "3600"),
)
DOCUMENT = ROOT / "docs" / "long_context.md"
COMMAND = "python benchmarks/long_context.py"
BEGIN, END = f"<!-- {COMMAND} -->\n", "<!-- end -->\n"


def planned(model: str, topology: str, mesh: str, seconds: str) -> dict[str, Any]:
    """Returns the JSON that `wroformer plan` writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "wroformer_jax.cli", "plan", "--config", "configs/long_context.py"]
        command += ["--topology", topology, "--mesh", mesh, "--seconds", seconds, "--json", str(file)]
        subprocess.run([*command, *MODELS[model]], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return json.loads(file.read_text())


def row_of(model: str, topology: str, mesh: str, seconds: str) -> dict[str, Any]:
    """Plans one row of the table."""
    found = planned(model, topology, mesh, seconds)
    memory, longest, examples = found["memory_bytes_per_device"], found.get("longest"), found["batch_size"]
    too_long = longest and longest["too_long"]
    return {
        "model": model,
        "options": " ".join(MODELS[model]),
        "topology": topology,
        "mesh": mesh,
        "asked": seconds,
        "examples": examples,
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


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the fields that identify a row."""
    return tuple(row[name] for name in ("model", "options", "topology", "mesh", "asked"))


def write_tables(rows: list[dict[str, Any]]) -> None:
    """Replaces the tables between the marks in the document."""
    alone = ["| one example per chip | chip | longest that fits | does not | GiB | state | host | score TFLOP |"]
    shared = ["| one example over several chips | slice, mesh | examples at once | example | GiB per chip | state |"]
    for table in (alone, shared):
        table.append("|---" * (table[0].count("|") - 1) + "|")
    for row in rows:
        memory, state = f"{row['peak GiB']:.1f} of {row['of GiB']:.2f}", f"{row['state GiB']:.2f}"
        fits, too_long = (row[name] if row[name] == "-" else _number(row[name]) + " s" for name in ("fits s", "not s"))
        if row["mesh"] == ONE:
            scores = _number(row["attention TFLOP"] / row["examples"])
            host = f"{row['host GiB']:.1f}" if row["host GiB"] else "-"
            cells = row["model"], row["topology"].partition(":")[0], fits, too_long, memory, state, host, scores
            alone.append(f"| {' | '.join(cells)} |")
        else:
            example = fits if too_long == "-" else f"{fits}; {too_long} does not fit"
            cells = row["model"], f"{row['topology']}, `{row['mesh']}`", str(row["examples"]), example, memory, state
            shared.append(f"| {' | '.join(cells)} |")
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT} has no place for the tables, between {BEGIN.strip()} and {END.strip()}")
    with replacing(DOCUMENT) as temporary:
        temporary.write_text(before + BEGIN + "\n".join([*alone, "", *shared, ""]) + END + after)


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def draw(rows: list[dict[str, Any]]) -> None:
    """Draws memory and FLOPs against length; each point is the longest example that fits into a chip."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (axes, compute) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in CURVES:
        points = [row for row in rows if row["model"] == name and row["topology"] in CHIPS]
        seconds = [row["fits s"] for row in points]
        axes.plot(seconds, [row["peak GiB"] for row in points], marker="o", label=name)
        compute.plot(seconds, [row["TFLOP"] / row["examples"] for row in points], marker="o", label=name)
    for chip, gib in {row["topology"]: row["of GiB"] for row in rows if row["topology"] in CHIPS}.items():
        name = chip.partition(":")[0]
        axes.axhline(gib, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(name, (10, gib), textcoords="offset points", xytext=(0, 2), fontsize=8, color="grey")
    ticks = (10, 20, 30, 60, 120, 300, 600, 1200)
    axes.set(xscale="log", yscale="log", xlabel="audio of the example, s", ylabel="memory of a chip, GiB")
    compute.set(xscale="log", yscale="log", xlabel="audio of the example, s", ylabel="a training step's work, TFLOP")
    for both in (axes, compute):
        both.set_xticks(ticks, map(str, ticks))
        both.minorticks_off()
    axes.set_yticks((16, 32, 64, 96), ("16", "32", "64", "96"))
    compute.legend(fontsize=8, loc="upper left")
    figure.savefig(ROOT / "docs" / "long_context.png", dpi=120)


def draw_parts() -> None:
    """Draws what the devices of a time-parallel step exchange."""
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
    parser.add_argument("--no-picture", action="store_true", help="tables only")
    args = parser.parse_args()
    kept = RESULTS / "long_context.json"
    known = {key_of(row): row for row in json.loads(kept.read_text())["rows"]} if kept.exists() else {}
    keys = [(model, " ".join(MODELS[model]), *where) for model, *where in ROWS]
    for number in args.rows:
        if keys[number] not in known:
            row = known[keys[number]] = row_of(*ROWS[number])
            print(row, file=sys.stderr, flush=True)
            write_result("long_context", COMMAND, list(known.values()))
    rows = [known[key] for key in keys if key in known]
    write_result("long_context", COMMAND, rows)
    write_tables(rows)
    if not args.no_picture:
        draw(rows)
        draw_parts()
    print_table(rows)


if __name__ == "__main__":
    main()
