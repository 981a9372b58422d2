"""Reads the memory that a program takes on a TPU from the compiler's dumps, before the compiler is done.

XLA lays out a program's memory half a minute after it has begun. Turning the program into machine code, which a plan
does not need, takes several minutes more. So a process of its own compiles the program and dumps its work, and is
killed once its memory report is written.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from wroformer_jax.config.training import TrainingConfig

_POLL_SECONDS = 0.5
_QUIET_SECONDS = 1.0  # a dump that has not changed for so long is complete
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
    with tempfile.TemporaryDirectory(prefix="wroformer_plan_") as folder:
        asked = Path(folder) / "asked.json"
        wanted = {"config": config.to_dict(), "topology": topology, "inference": inference}
        asked.write_text(json.dumps({**wanted, "parent": os.getpid(), "folder": folder}))
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_module_re=jit_plan.*"
        environment = {**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "wroformer_jax.planning.compile_child", str(asked)]
        with open(Path(folder) / "said.txt", "w+", encoding="utf-8") as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
            try:
                while process.poll() is None:
                    if found := read_layout(Path(folder)):
                        return found
                    time.sleep(_POLL_SECONDS)
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            text = said.read()
        if found := read_layout(Path(folder), has_ended=True):
            return found
    raise CompilationError(text)


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
