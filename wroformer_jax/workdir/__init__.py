"""The files of a training run: checkpoints, logs, pictures, sounds. Nothing in this room trains."""

from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.log import TrainingLog
from wroformer_jax.workdir.ownership import claim

__all__ = ["TrainingCheckpoints", "TrainingLog", "claim"]
