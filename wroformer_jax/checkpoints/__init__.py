"""Loads and saves weights: model directories, PyTorch files, downloads from the Hugging Face hub."""

from wroformer_jax.checkpoints.loading import load, save
from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.checkpoints.torch_files import load_torch, save_torch
from wroformer_jax.checkpoints.torch_weights import TorchLayout, from_state_dict, to_state_dict

__all__ = [
    "TorchLayout",
    "from_state_dict",
    "load",
    "load_model",
    "load_torch",
    "save",
    "save_model",
    "save_torch",
    "to_state_dict",
]
