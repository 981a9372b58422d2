"""Compiles the program that `wroformer plan` asks about: python -m wroformer_jax.plan_program ASKED.json

Started by memory_report.py, which reads the compiler's dumps.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.planning.plans import program_of
from wroformer_jax.planning.topology import topology


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    _end_with(asked["parent"], Path(asked["folder"]))
    config = TrainingConfig.from_dict(asked["config"])
    mesh = make_mesh(config.mesh, topology(asked["topology"]).devices)
    program = program_of(config, mesh, inference=asked["inference"])
    program.function.lower(*program.arguments).compile()


def _end_with(parent: int, folder: Path) -> None:
    """Has this process end when its parent, which waits for its dumps, was killed; their folder goes with it.

    Args:
      parent: number of that process.
      folder: of the dumps.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
