"""Loads a model from any source, and saves it in either format.

A source is a PyTorch file, a model directory or training workdir (see model_dir.py), which may be in a bucket
(`gs://bucket/folder`), `hf://owner/repo/file`, or the name of a known checkpoint (see config/known_checkpoints.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from wroformer_jax.checkpoints import hub
from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.checkpoints.torch_files import CHECKPOINT_SUFFIXES, load_torch, save_torch
from wroformer_jax.checkpoints.torch_weights import TorchLayout
from wroformer_jax.checkpoints.torch_yaml import public_yaml
from wroformer_jax.config.known_checkpoints import HUB_PREFIX, KNOWN_CHECKPOINTS
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError, suggestion
from wroformer_jax.io.buckets import SCHEME, Place, is_remote, place
from wroformer_jax.io.files import check_space, disk_errors_named, exists, refuse_existing, replacing
from wroformer_jax.model.roformer import RoFormer

YAML_SUFFIXES = (".yaml", ".yml")

Config = ModelConfig | Mapping[str, Any] | str | os.PathLike

_log = logging.getLogger("wroformer")


def load(source: str | os.PathLike, *, config: Config | None = None) -> tuple[RoFormer, dict[str, Any]]:
    """Loads a model.

    Args:
      source: a .ckpt, .pt, .pth, .th or .safetensors file, a model directory, a training workdir (its newest
        complete checkpoint), a model directory or workdir in a bucket (`gs://bucket/folder`),
        `hf://owner/repo/file`, or the name of a known checkpoint such as "kim-melband".
      config: the settings of a PyTorch file: the path of a public YAML file, a `ModelConfig`, or a dict of its
        fields. By default they come from a YAML file of the same name beside the weights (on the hub: a .yaml file
        in the same folder of the repository), from the known checkpoint of that name, or from the weights.

    Returns:
      The model, and its parameters as a nested dict of JAX arrays: `model.apply({"params": params}, audio)`.

    Raises:
      InputError: the source does not exist or is damaged, or its settings are missing or do not fit it.
    """
    config, params, _ = read(source, config=config)
    return RoFormer(config), _move_to_jax(params)


def read(
    source: str | os.PathLike, *, config: Config | None = None
) -> tuple[ModelConfig, dict[str, Any], TorchLayout | None]:
    """Reads the same sources as `load`.

    Returns:
      The settings, the parameters as a nested dict of float32 NumPy arrays, and the layout of the PyTorch file that
      the weights came from (None if they came from none).

    Raises:
      InputError: as for `load`.
    """
    path, known_config = resolve(source)
    if is_remote(path) or path.is_dir():
        if config is not None:
            raise InputError(f"{path} carries its own settings: leave config out")
        return load_model(path)
    if config is None:
        config = known_config or _yaml_beside(os.fspath(source), Path(path))
    elif isinstance(config, Mapping):
        config = ModelConfig.from_dict(config)
    return load_torch(path, config)


def save(path: str | os.PathLike, model: RoFormer, params: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Saves a model: as a PyTorch file if `path` has the suffix of one, else as a model directory.

    A PyTorch file gets float32 tensors in the order of the public PyTorch code, wherever the model came from. Only
    the converter keeps the dtypes and the order of the file that the weights were read from.

    Args:
      path: the file or directory to write; .ckpt, .pt, .pth, .th or .safetensors for a PyTorch file.
      model: the model.
      params: its parameters, a nested dict of JAX or NumPy arrays.
      overwrite: replace a file or model directory of that name.

    Raises:
      InputError: `path` exists and `overwrite` is not set, the disk is full, or the parameters do not fit the model.
    """
    path = Path(path)
    if path.suffix in CHECKPOINT_SUFFIXES:
        write_torch(path, model.config, params, overwrite=overwrite)
    else:
        save_model(path, model.config, params, overwrite=overwrite)


def resolve(source: str | os.PathLike) -> tuple[Place, ModelConfig | None]:
    """Finds a source, and downloads it if it is on the hub.

    Returns:
      A local file or directory, or a directory in a bucket; and its settings if it is a known checkpoint.

    Raises:
      InputError: the source does not exist, or cannot hold a checkpoint.
    """
    text = os.fspath(source)
    path = Path(text)
    if text.startswith(HUB_PREFIX):
        _check_suffix(text, hub.parse(text).file)
        return _fetched(text)
    if text.startswith(SCHEME):
        if path.suffix in CHECKPOINT_SUFFIXES:
            raise InputError(
                f"{text} is a file in a bucket: copy it with `gcloud storage cp {text} .`, and name the copy"
            )
        return place(text), None
    if exists(path):
        if not path.is_dir():
            _check_suffix(text, path)
        return place(path), None
    if text in KNOWN_CHECKPOINTS:
        return _fetched(text)
    raise InputError(_not_found(text))


def write_torch(
    path: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    layout: TorchLayout | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a PyTorch file as `torch_files.save_torch` does, and its settings as a YAML file beside it.

    Raises:
      InputError: the file, or a YAML file with other settings, exists and `overwrite` is not set; or the disk is
        full or refuses.
    """
    settings, text = path.with_suffix(YAML_SUFFIXES[0]), public_yaml(config)
    if exists(path) and path.is_dir():
        raise InputError(f"{path} is a directory, expected the name of a file")
    refuse_existing(path, overwrite=overwrite)
    if not settings.is_file() or settings.read_bytes() != text.encode():
        refuse_existing(settings, overwrite=overwrite)
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        save_torch(path, config, params, layout)
        with replacing(settings) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _move_to_jax(tree: Any) -> Any:
    """Converts a nested dict to JAX arrays and empties it on the way, so that memory never holds both in full."""
    if isinstance(tree, dict):
        return {name: _move_to_jax(tree.pop(name)) for name in list(tree)}
    return jax.device_put(tree)  # jnp.asarray would compile a copy for each shape


def _fetched(source: str) -> tuple[Place, ModelConfig | None]:
    path, config = hub.fetch(source)
    return place(path), config


def _check_suffix(source: str, file: str | Path) -> None:
    if Path(file).suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(
            f"{source} is not a checkpoint: expected a model directory, or a {', '.join(CHECKPOINT_SUFFIXES[:-1])} "
            f"or {CHECKPOINT_SUFFIXES[-1]} file"
        )


def _yaml_beside(source: str, path: Path) -> Path | None:
    if source.startswith(HUB_PREFIX):
        beside = hub.fetch_yaml(source)
    else:
        candidates = [path.with_suffix(suffix) for suffix in YAML_SUFFIXES]
        # os.path.isfile: Path.is_file raises an error if the suffix makes a name too long
        beside = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    if beside is not None:
        _log.info("settings from %s", beside)
    return beside


def _not_found(text: str) -> str:
    if suggested := suggestion(text, list(KNOWN_CHECKPOINTS)):
        return f"{text} is neither a file nor a known checkpoint{suggested}"
    if os.sep in text or Path(text).suffix:
        return f"{text} does not exist"
    return f"{text} is neither a file nor a known checkpoint ({', '.join(KNOWN_CHECKPOINTS)})"
