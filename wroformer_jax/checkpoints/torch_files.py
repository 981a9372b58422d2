"""Reads and writes PyTorch checkpoints: files of torch.save, and .safetensors.

Reading never runs code from a file. Torch is imported for torch's own files only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from wroformer_jax.checkpoints.torch_config import complete_config
from wroformer_jax.checkpoints.torch_weights import DTYPES, TorchLayout, from_state_dict, to_state_dict
from wroformer_jax.checkpoints.torch_yaml import read_yaml
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.files import disk_errors_named, replacing
from wroformer_jax.model.layers import Params

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".th")  # written by torch.save
CHECKPOINT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")

# Keys under which training programs save the state dict.
_WRAPPERS = ("state_dict", "state", "model_state_dict", "model")
# Prefixes that DistributedDataParallel, Lightning and torch.compile give to every key.
_PREFIXES = ("module.", "model.", "_orig_mod.")
# Parts of torch's messages about a pickle that wants more than tensors.
_CODE_REFUSED = ("GLOBAL", "Unsupported global", "Unsupported class", "unrecognized function")

_log = logging.getLogger("wroformer")


def load_torch(
    path: str | os.PathLike, config: str | os.PathLike | ModelConfig | None = None
) -> tuple[ModelConfig, Params, TorchLayout]:
    """Reads a PyTorch checkpoint (.ckpt, .pt, .pth, .th) or a .safetensors file.

    Sizes are read off the weights and checked against `config`. What the weights do not contain (hop, sample rate,
    window, names of the stems) comes from `config`, or else from the published models, with a warning in the log.

    Args:
      path: the file: a bare state dict, or one under a usual key, with or without a usual prefix.
      config: a YAML file in the dialect of public checkpoints, or a ModelConfig.

    Returns:
      The model's config, its parameters as a nested dict of float32 NumPy arrays, and the layout with which
      `save_torch` writes the same file again.

    Raises:
      InputError: the file cannot be read safely, holds no model of this family, or contradicts `config`.
    """
    path = Path(path)
    state = _unwrap(_read(path), path)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    given = read_yaml(config) if isinstance(config, str | os.PathLike) else config
    completed = complete_config(shapes, given, path)

    layout = TorchLayout(tuple((key, _dtype_name(tensor, key, path)) for key, tensor in state.items()))
    if doubles := sum(dtype == "float64" for _, dtype in layout.dtypes):
        _log.warning("%s: %d tensors are float64 and are rounded to float32; the precision is lost", path, doubles)
    try:
        params = from_state_dict(completed, state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return completed, params, layout


def save_torch(
    path: str | os.PathLike, config: ModelConfig, params: Mapping[str, Any], layout: TorchLayout | None = None
) -> None:
    """Writes a state dict with the public key names. The file appears under its name once it is complete.

    Args:
      path: .ckpt, .pt, .pth or .th for a file of torch.save, or .safetensors.
      config: the model's config.
      params: its parameters.
      layout: order and dtypes, as `load_torch` returned them; without it float32 in the public order.

    Raises:
      InputError: the suffix is unknown, torch is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"{path}: expected a name ending in {', '.join(CHECKPOINT_SUFFIXES)}")
    torch = _import_torch(path) if path.suffix in PICKLE_SUFFIXES else None
    state = to_state_dict(config, params, layout)
    with disk_errors_named(path), replacing(path) as temporary:
        if torch is None:
            from safetensors.numpy import save_file

            save_file(state, temporary)
        else:
            torch.save({key: _to_tensor(torch, value) for key, value in state.items()}, temporary)


def _read(path: Path) -> Any:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"{path}: not a checkpoint's name, expected one ending in {', '.join(CHECKPOINT_SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as safetensors, is it complete? ({_one_line(error)})") from error


def _read_pickle(path: Path) -> Any:
    import pickle

    torch = _import_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _CODE_REFUSED):
            raise InputError(
                f"{path}: holds more than tensors (a pickle with code in it), which is not run: "
                "save the bare state_dict instead"
            ) from error
        raise InputError(f"{path}: not a whole PyTorch checkpoint (its pickle cannot be read)") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not a whole PyTorch checkpoint ({_one_line(error)})") from error


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: needs PyTorch, which is not installed: pip install 'wroformer-jax[torch]', "
            "or use a .safetensors file"
        ) from error
    return torch


def _unwrap(loaded: Any, path: Path) -> dict[str, Any]:
    """Returns the state dict inside what was saved, without the prefixes that wrappers give to its keys."""
    # A wrapper may hold tensors beside the weights, such as a step count: look for the wrapped dict first.
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(hasattr(value, "shape") for value in loaded.values()):
        found = (
            f"keys {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        )
        raise InputError(
            f"{path}: no state dict found (found {found or 'nothing'}), expected tensors by name, bare or under "
            f"{', '.join(_WRAPPERS)}"
        )
    state = {str(key): value for key, value in loaded.items() if hasattr(value, "shape")}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _dtype_name(tensor: Any, key: str, path: Path) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"{path}: {key} has the dtype {name}, expected one of {', '.join(DTYPES)}")
    return name


def _to_tensor(torch: Any, values: np.ndarray) -> Any:
    if values.dtype == ml_dtypes.bfloat16:  # torch does not know ml_dtypes, so it gets the bits as integers
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _one_line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 160 else first[:157] + "..."
