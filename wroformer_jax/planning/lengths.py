"""The same run with examples of another length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wroformer_jax.config.training import LONGEST_CROP, TrainingConfig
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import AbstractMesh, Mesh


def with_seconds(config: TrainingConfig, seconds: float) -> TrainingConfig:
    """Returns the config with crops of that length, and synthetic songs that are long enough for them."""
    song_seconds = max(config.synthetic.song_seconds, seconds)
    return config.with_changes(seconds=seconds, synthetic={"song_seconds": song_seconds})


def shortest_crop(config: TrainingConfig, mesh: Mesh | AbstractMesh) -> float:
    """Returns the seconds of the shortest crop that losses and model take and the mesh can cut, to within a quarter.

    Raises:
      InputError: the mesh cannot cut a crop of any length.
    """
    from wroformer_jax.training.state import time_of

    model = config.model
    needed = max(*config.loss.windows, model.stft_n_fft) // 2 + 1
    hops = math.ceil(needed / model.stft_hop_length)
    seconds = math.ceil(1000 * hops * model.stft_hop_length / model.sample_rate) / 1000
    while True:
        try:
            time_of(with_seconds(config, seconds), mesh)
        except InputError:
            if seconds >= LONGEST_CROP:  # so the reason is not that it is too short
                raise
            seconds = min(1.25 * seconds, LONGEST_CROP)
        else:
            return seconds
