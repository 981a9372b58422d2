"""Compiles the program that `wroformer plan` asks about: python -m wroformer_jax.plan_program ASKED.json

Started by memory_report.py, which reads the compiler's dumps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wroformer_jax.plan import program_of
from wroformer_jax.sharding import make_mesh
from wroformer_jax.topology import topology
from wroformer_jax.training_config import TrainingConfig


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    config = TrainingConfig.from_dict(asked["config"])
    mesh = make_mesh(config.mesh, topology(asked["topology"]).devices)
    program = program_of(config, mesh, inference=asked["inference"])
    program.function.lower(*program.arguments).compile()


if __name__ == "__main__":
    main()
