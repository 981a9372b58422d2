"""Reads the memory that a program takes on a TPU from the compiler's dumps, before the compiler is done.

XLA lays out a program's memory half a minute after it has begun. Turning the program into machine code, which a plan
does not need, takes several minutes more. So a process of its own compiles the program and dumps its work, and is
killed once its memory report is written. Only where the time of the program is to be counted it may work to its end;
libtpu then dumps its machine code, too (bundles.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.planning.bundles import DUMP_FLAGS, num_dumped

COMPILED = "compiled.txt"  # the text of the program with the compiler's estimates, written by compile_child.py

_Read = TypeVar("_Read")

_POLL_SECONDS = 0.5
_PROGRESS_SECONDS = 20.0  # between two reports
_QUIET_SECONDS = 1.0  # a dump that has not changed for so long is complete
_SAID = "said.txt"  # what the process says
# The names of XLA's dumps; XLA is asked for the program's only.
_REPORT, _TEXT = "*after_optimizations-memory-usage-report.txt", "*after_optimizations.txt"
# Memory spaces in the report: the device's and the host's (kHostMemorySpace of xla::Layout). Their names, and the other
# spaces, depend on the chip.
_HBM, _HOST = "(color=0)", "(color=5)"


class Layout(NamedTuple):
    """A compiled program."""

    text: str  # the optimised HLO
    total: int  # bytes of a device's memory, arguments and results included
    host: int  # bytes of the host's memory for each device


class CompilationError(Exception):
    """The compiler refused the program; the message is its output."""


def layout(config: TrainingConfig, topology: str, *, inference: bool) -> Layout:
    """Lays out the training step or the forward pass for a TPU slice.

    Args:
      config: see `plans.settle`.
      topology: name of the slice.
      inference: lay out the forward pass.

    Raises:
      CompilationError: the compiler refuses it, for instance because it does not fit.
    """
    with _compiling(config, topology, inference=inference, to_the_end=False) as (folder, process):
        while process.poll() is None:
            if found := read_layout(folder):
                return found
            time.sleep(_POLL_SECONDS)
        return _layout_at_the_end(folder)


def layout_and_code(
    config: TrainingConfig,
    topology: str,
    *,
    inference: bool,
    read: Callable[[Path], _Read],
    progress: Callable[[str], None],
) -> tuple[Layout, _Read]:
    """Compiles the training step or the forward pass for a TPU slice to the end, which takes minutes.

    Args:
      config: see `plans.settle`.
      topology: name of the slice.
      inference: compile the forward pass.
      read: reads what it needs of the folder with the dumps and the text of the program (`COMPILED`).
      progress: is told now and then how far the compiler is.

    Returns:
      The layout, and what `read` has returned.

    Raises:
      CompilationError: the compiler refuses it, for instance because it does not fit.
    """
    start = last = time.monotonic()
    with _compiling(config, topology, inference=inference, to_the_end=True) as (folder, process):
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - last > _PROGRESS_SECONDS:
                last = time.monotonic()
                progress(f"{last - start:.0f} s: machine code of {num_dumped(folder)} operations so far")
        found = _layout_at_the_end(folder)
        if not (folder / COMPILED).exists():
            raise CompilationError((folder / _SAID).read_text(errors="replace"))
        return found, read(folder)


@contextlib.contextmanager
def _compiling(
    config: TrainingConfig, topology: str, *, inference: bool, to_the_end: bool
) -> Iterator[tuple[Path, subprocess.Popen]]:
    """Starts the process that compiles, and ends it and removes its dumps in the end."""
    with tempfile.TemporaryDirectory(prefix="wroformer_plan_") as name:
        folder = Path(name)
        asked = folder / "asked.json"
        wanted = {"config": config.to_dict(), "topology": topology, "inference": inference, "to_the_end": to_the_end}
        asked.write_text(json.dumps({**wanted, "parent": os.getpid(), "folder": name}))
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={name} --xla_dump_hlo_module_re=jit_plan.*"
        environment = {**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program that is found there leaves no dumps
        if to_the_end:
            options = [os.environ.get("LIBTPU_INIT_ARGS", ""), *DUMP_FLAGS]
            environment["LIBTPU_INIT_ARGS"] = " ".join(options).format(folder=name).strip()
        command = [sys.executable, "-m", "wroformer_jax.planning.compile_child", str(asked)]
        with open(folder / _SAID, "w", encoding="utf-8") as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
            try:
                yield folder, process
            finally:
                process.kill()
                process.wait()


def _layout_at_the_end(folder: Path) -> Layout:
    found = read_layout(folder, has_ended=True)
    if found is None:
        raise CompilationError((folder / _SAID).read_text(errors="replace"))
    return found


def read_layout(folder: Path, *, has_ended: bool = False) -> Layout | None:
    """Returns the layout that the dumps describe, None as long as they are incomplete.

    Args:
      folder: of the dumps.
      has_ended: the process that writes them has ended.
    """
    report = next(folder.glob(_REPORT), None)
    program = next(folder.glob(_TEXT), None)
    if report is None or program is None:
        return None
    written = max(file.stat().st_mtime for file in (report, program))
    if not has_ended and time.time() - written < _QUIET_SECONDS:
        return None
    sizes = dict(re.findall(r"Memory Space: (.*?)\nTotal bytes: (\d+)", report.read_text(errors="replace")))
    hbm = next((int(size) for name, size in sizes.items() if _HBM in name), None)
    if hbm is None:
        return None
    host = sum(int(size) for name, size in sizes.items() if _HOST in name)
    return Layout(program.read_text(errors="replace"), hbm, host)
