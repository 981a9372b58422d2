"""The starting point of every recipe: all settings of a training run at their defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

from wroformer_jax.config.training import TrainingConfig


def default_config() -> Any:
    """Returns all fields of a `TrainingConfig` at their defaults, for a recipe's `get_config` to change.

    Returns:
      A locked `ml_collections.ConfigDict`: a field that does not exist is refused where it is set, in the file or on
      the command line (--config.FIELD=VALUE), and so is a value of another type. The annotation is
      `Any` because type checkers cannot know the fields of a ConfigDict.
    """
    from ml_collections import ConfigDict, config_dict

    config: Any = ConfigDict(dataclasses.asdict(TrainingConfig()))
    # None, but can be set on the command line.
    config.model.freqs_per_bands = config_dict.placeholder(tuple)
    config.model.places_at_once = config_dict.placeholder(int)
    config.model.frames_at_once = config_dict.placeholder(int)
    return config.lock()
