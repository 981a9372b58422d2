"""Reads the recipes in configs/ for the benchmarks."""

from __future__ import annotations

import runpy
from pathlib import Path

from wroformer_jax.config.training import TrainingConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def read_recipe(path: str | Path) -> TrainingConfig:
    """Returns the config of a recipe; a relative path is one in configs/."""
    return TrainingConfig.from_dict(runpy.run_path(str(CONFIGS / path))["get_config"]().to_dict())
