"""Settings of models, of augmentation and of training runs: frozen, checked once, plain Python."""

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.config.model import ModelConfig, forward_only
from wroformer_jax.config.recipe import default_config
from wroformer_jax.config.training import MESH_AXES, TrainingConfig

__all__ = ["MESH_AXES", "Augmentation", "ModelConfig", "TrainingConfig", "default_config", "forward_only"]
