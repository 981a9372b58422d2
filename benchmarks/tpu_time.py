"""Counts how long the published size takes on TPUs, without one: forward passes and a training step.

    pip install --no-deps libtpu==0.0.42.1
    python benchmarks/tpu_time.py                              # every row; a row takes minutes
    python benchmarks/tpu_time.py --rows forward-8-v5e step-8-v5e
    python benchmarks/tpu_time.py --rows                       # only writes the page from the results there are

Prints, for each row, the compiler's own estimate and the count of the final schedule (see `wroformer plan --time`),
each with its share of the peak rate; then the same for each part of the model. Rows that are counted again replace
theirs in results/tpu_time.json, and the TPU section of docs/performance.md is written from all of them. Weights are
not needed; all products are bfloat16, with one example for each chip.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
from compare_pages import markdown, replace_between
from recipes import read_recipe
from report import RESULTS, machine, print_table

from wroformer_jax.cli.plan_tables import time_table
from wroformer_jax.planning.plans import DoesNotFit, Plan, plan, settle
from wroformer_jax.planning.time_parts import TimeCount
from wroformer_jax.planning.time_picture import save_times
from wroformer_jax.planning.topology import find_topology

DOCS = Path(__file__).parents[1] / "docs"
NAME = "tpu_time"
LINE = 118  # characters of a line of the page


class Row(NamedTuple):
    """A program to count."""

    chip: str
    topology: str
    seconds: float
    inference: bool


ROWS = {
    "forward-8-v5e": Row("v5e", "v5e:1x1", 8.0, True),
    "step-8-v5e": Row("v5e", "v5e:1x1", 8.0, False),
    "forward-60-v5e": Row("v5e", "v5e:1x1", 60.0, True),
    "forward-8-v6e": Row("v6e", "v6e:1x1", 8.0, True),
    "forward-8-v5p": Row("v5p", "v5p:2x2x1", 8.0, True),
    "forward-8-tpu7x": Row("tpu7x", "tpu7x:2x2x1", 8.0, True),
}


def counted(path: str, row: Row) -> Plan:
    """Compiles a row's program to the end. A training step has no teacher, and recomputes blocks."""
    model = {} if row.inference else {"remat": "block"}
    config = read_recipe(path).with_changes(
        mesh={"data": -1, "fsdp": 1, "seq": 1},
        seconds=row.seconds,
        model=model,
        optimizer={"accumulate": 1},
        loss={"weights": {"masks": 0.0}},
    )
    target = find_topology(row.topology)
    config, mesh = settle(config, target)
    return plan(config, mesh, target, inference=row.inference, progress=say)


def say(text: str) -> None:
    """Prints on stderr."""
    print(text, file=sys.stderr, flush=True)


def line(row: Row, found: Plan, count: TimeCount) -> dict[str, Any]:
    """Returns a line of the table."""
    whole = count.whole

    def share(seconds: float) -> str:
        part = count.share(whole.flops, seconds)
        return f"{part:.1%}" if part else "-"

    return {
        "chip": row.chip,
        "program": "forward" if row.inference else "training step",
        "audio s": row.seconds,
        "estimate ms": 1000 * whole.estimated,
        "of peak (e)": share(whole.estimated),
        "schedule ms": 1000 * whole.scheduled,
        "of peak (s)": share(whole.scheduled),
        "roofline ms": 1000 * found.roofline.overlapped if found.roofline else "-",
        "GiB": found.memory.peak / 2**30,
        "ops": count.num_operations,
        "compile": found.compile_seconds,
    }


def parts(count: TimeCount) -> list[dict[str, Any]]:
    """Returns the parts of a program as lines of a table."""
    lines = []
    for name, part in (*count.parts.items(), ("all", count.whole)):
        shares = [count.share(part.flops, seconds) for seconds in (part.estimated, part.scheduled)]
        estimated, scheduled = (f"{share:.1%}" if share else "-" for share in shares)
        lines.append(
            {
                "part": name,
                "estimate ms": 1000 * part.estimated,
                "of peak (e)": estimated,
                "schedule ms": 1000 * part.scheduled,
                "of peak (s)": scheduled,
                "mostly": part.bound,
            }
        )
    return lines


def write_page(kept: dict[str, Any]) -> None:
    """Writes the TPU section of docs/performance.md from all rows that were counted."""
    ordered = {name: kept[name] for name in ROWS if name in kept}
    machines = sorted({one["machine"] for one in ordered.values()})
    about = (
        f"Command: `python benchmarks/{NAME}.py`. No TPU was run: the figures are counted in the compiled programs, by "
        "the compiler's own estimate and by the final schedule of its instructions, as `wroformer plan --time` does. "
        "The roofline of the data sheet's peak rates lets every product read and write HBM, which it need not where "
        "pieces stay in VMEM. (e) is the share of the peak rate by the estimate, (s) by the schedule. One example a "
        "chip, published size, bfloat16. The seconds to compile include the dumps of machine code. "
        f"Compiled on {'; '.join(machines)}."
    )
    lines = textwrap.wrap(about, LINE, break_long_words=False, break_on_hyphens=False)
    sections = ["\n".join(lines), markdown([one["line"] for one in ordered.values()])]
    for name in ("forward-8-v5e", "step-8-v5e"):
        if name in ordered:
            picture = f"{NAME}_{name}.png"
            sections.append(
                f"**Parts of {name}**\n\n{markdown(ordered[name]['parts'])}\n\n![Parts of {name}]({picture})"
            )
    replace_between(DOCS / "performance.md", NAME, "\n\n".join(sections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="finetune_wsa.py")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="those to count")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md alone")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    path = RESULTS / f"{NAME}.json"
    for name in args.rows:
        row = ROWS[name]
        say(f"{name}: compiling ...")
        try:
            found = counted(args.config, row)
        except DoesNotFit as refusal:
            say(f"{name}: {refusal}, which takes {refusal.needed} of {refusal.available} bytes")
            continue
        assert found.time is not None
        say(time_table(found.time, inference=row.inference, verbose=True))
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept[name] = {
            "command": f"python benchmarks/{NAME}.py --rows {name}",
            "machine": machine(),
            "line": line(row, found, found.time),
            "parts": parts(found.time),
        }
        path.write_text(json.dumps(kept, indent=2) + "\n")
        print_table([kept[name]["line"]])
        print_table(kept[name]["parts"])
        if not args.no_page and name in ("forward-8-v5e", "step-8-v5e"):
            what = "forward pass" if row.inference else "training step"
            save_times(DOCS / f"{NAME}_{name}.png", found.time, title=f"{what}, {row.seconds:g} s, {row.chip}")
    if path.exists() and not args.no_page:
        write_page(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
