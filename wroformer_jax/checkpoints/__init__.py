"""Weights on disk, on the hub, and in PyTorch's format."""

from wroformer_jax.checkpoints.loading import load, save
from wroformer_jax.checkpoints.torch_weights import TorchLayout, from_state_dict, load_torch, save_torch, to_state_dict

__all__ = ["TorchLayout", "from_state_dict", "load", "load_torch", "save", "save_torch", "to_state_dict"]
