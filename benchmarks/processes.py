"""Measures the time and the peak memory of a command."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# A new process shares its parent's memory at first, which counts towards its peak: a small parent starts it.
_LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def wroformer(*arguments: object) -> list[str]:
    """Returns the command line of `wroformer` with this interpreter."""
    return [sys.executable, "-m", "wroformer_jax.cli", *map(str, arguments)]


def measure(command: Sequence[str]) -> dict[str, int]:
    """Runs a command, which must succeed; returns its time in seconds and its largest resident memory in MiB."""
    start = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} failed with status {process.returncode}")
    kibibytes = int(process.stdout) / (1024 if sys.platform == "darwin" else 1)
    return {"wall s": round(time.perf_counter() - start), "peak MiB": round(kibibytes / 1024)}


def measure_wall(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Runs a command, which must succeed; returns its time in seconds."""
    start = time.perf_counter()
    process = subprocess.run(command, env=dict(environment), stdout=subprocess.DEVNULL)
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} failed with status {process.returncode}")
    return time.perf_counter() - start
