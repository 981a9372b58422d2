"""Compiles the program that `wroformer plan` asks about: python -m wroformer_jax.planning.compile_child ASKED.json

compiler_memory.py starts this process and reads the compiler's dumps.
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
from wroformer_jax.planning.compiler_memory import COMPILED
from wroformer_jax.planning.plans import program_of
from wroformer_jax.planning.topology import find_topology


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    end_with(asked["parent"], Path(asked["folder"]))
    config = TrainingConfig.from_dict(asked["config"])
    mesh = make_mesh(config.mesh, find_topology(asked["topology"]).devices)
    program = program_of(config, mesh, inference=asked["inference"])
    compiled = program.function.lower(*program.arguments).compile()
    if asked["to_the_end"]:
        (Path(asked["folder"]) / COMPILED).write_text(compiled.as_text(), encoding="utf-8")


def end_with(parent: int, folder: Path) -> None:
    """Ends this process and removes the dumps when the parent, which waits for them, is killed.

    Args:
      parent: its process id.
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
