"""Prints the tables of the benchmarks, and writes them as JSON under results/."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a right-aligned table; the keys of the first row are the headings."""
    print(aligned(rows))


def aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table that `print_table` prints."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def write_result(name: str, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes results/NAME.json: the rows, the command and the kind of machine that measured them."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "machine": machine(), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=2) + "\n")


def machine() -> str:
    """Returns the kind of this machine, and the version of JAX."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
