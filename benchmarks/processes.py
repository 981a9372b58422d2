"""How long a command takes and how much memory its process needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

# The peak of a new process counts what it shares with its parent at first: a small one starts it.
_LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def wroformer(*arguments: object) -> list[str]:
    """The command `wroformer` of this interpreter."""
    return [sys.executable, "-m", "wroformer_jax.cli", *map(str, arguments)]


def measure(command: Sequence[str]) -> dict[str, int]:
    """Runs a command in a process of its own, which must succeed; its time and its largest resident memory."""
    start = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} failed with status {process.returncode}")
    kibibytes = int(process.stdout) / (1024 if sys.platform == "darwin" else 1)
    return {"wall s": round(time.perf_counter() - start), "peak MiB": round(kibibytes / 1024)}
