"""Loading and saving models, whatever form they are in.

A source is a PyTorch file, a model directory or training workdir (see checkpoint.py), which may be in a bucket
(`gs://bucket/folder`), `hf://owner/repo/file`, or the name of a known checkpoint (see hub.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.checkpoints import hub
from wroformer_jax.checkpoints.torch_weights import CHECKPOINT_SUFFIXES
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError, suggestion
from wroformer_jax.io.buckets import SCHEME, Place, is_remote, place
from wroformer_jax.io.files import check_space, disk_errors_named, exists, refuse_existing, replacing

if TYPE_CHECKING:
    from wroformer_jax.checkpoints.torch_weights import TorchLayout
    from wroformer_jax.model.roformer import RoFormer

YAML_SUFFIXES = (".yaml", ".yml")

_log = logging.getLogger("wroformer")

Config = ModelConfig | Mapping[str, Any] | str | os.PathLike


def load(source: str | os.PathLike, *, config: Config | None = None) -> tuple[RoFormer, dict[str, Any]]:
    """Loads a model.

    Args:
      source: a .ckpt, .pt, .pth, .th or .safetensors file, a model directory, a training workdir (its newest
        whole checkpoint), one of both in a bucket (`gs://bucket/folder`), `hf://owner/repo/file`, or a known name such
        as "kim-melband".
      config: for PyTorch files only: the settings, as the path of a public YAML file, a `ModelConfig`, or a
        dict of its fields. By default a YAML file of the same name beside the weights is used (on the hub: .yaml
        in the same folder of the repository), the settings that come with a known name, or what the weights tell.

    Returns:
      The model, and its parameters as a nested dict of JAX arrays: `model.apply({"params": params}, audio)`.

    Raises:
      InputError: there is no such source, it is damaged, or its settings are missing or do not fit it.
    """
    from wroformer_jax.model.roformer import RoFormer

    config, params, _ = read(source, config=config)
    return RoFormer(config), _moved_to_jax(params)


def read(
    source: str | os.PathLike, *, config: Config | None = None
) -> tuple[ModelConfig, dict[str, Any], TorchLayout | None]:
    """As `load`, but gives the settings, NumPy arrays, and how the PyTorch file they came from looked."""
    path, known_config = resolve(source)
    if is_remote(path) or path.is_dir():
        if config is not None:
            raise InputError(f"{path} carries its own settings: leave config out")
        from wroformer_jax.checkpoints.model_dir import load_model

        return load_model(path)
    from wroformer_jax.checkpoints.torch_weights import load_torch

    if config is None:
        config = known_config or _yaml_beside(os.fspath(source), path)
    elif isinstance(config, Mapping):
        config = ModelConfig.from_dict(config)
    elif isinstance(config, os.PathLike):
        config = Path(config)
    return load_torch(path, config)


def save(path: str | os.PathLike, model: RoFormer, params: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Saves a model: as a PyTorch file if `path` ends like one, else as a model directory.

    A PyTorch file gets float32 tensors in the order of the public PyTorch code, wherever the model came from; only
    convert_torch_checkpoint.py writes the dtypes and the order of the file that the weights were read from.

    Args:
      path: ends in .ckpt, .pt, .pth, .th or .safetensors for a PyTorch file.
      model: the model.
      params: its parameters, a nested dict of JAX or NumPy arrays.
      overwrite: replace the file, or the model directory, of that name.

    Raises:
      InputError: `path` exists and `overwrite` is not set, the disk is full, or the parameters are not those
        of the model.
    """
    path = Path(path)
    if path.suffix in CHECKPOINT_SUFFIXES:
        write_torch(path, model.config, params, overwrite=overwrite)
    else:
        from wroformer_jax.checkpoints.model_dir import save_model

        save_model(path, model.config, params, overwrite=overwrite)


def resolve(source: str | os.PathLike) -> tuple[Place, ModelConfig | None]:
    """Finds out what a source is, and downloads it if it is on the hub.

    Returns:
      A local file or directory, or a directory in a bucket, and its settings if it is a known checkpoint.

    Raises:
      InputError: there is no such source, or it is not of a kind that can be loaded.
    """
    text = os.fspath(source)
    path = Path(text)
    if text.startswith(hub.PREFIX):
        _check_suffix(text, hub.parse(text).file)
        return hub.fetch(text)
    if text.startswith(SCHEME):
        if path.suffix in CHECKPOINT_SUFFIXES:
            raise InputError(
                f"{text} is a file in a bucket: copy it with `gcloud storage cp {text} .`, and name the copy"
            )
        return place(text), None
    if exists(path):
        if not path.is_dir():
            _check_suffix(text, path)
        return path, None
    if text in hub.KNOWN:
        return hub.fetch(text)
    raise InputError(_not_there(text))


def write_torch(
    path: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    layout: TorchLayout | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a PyTorch file, as `torch_bridge.save_torch`, and its settings as a YAML file beside it.

    Raises:
      InputError: the file, or other settings, exist and `overwrite` is not set, or the disk is full or refuses.
    """
    import jax

    from wroformer_jax.checkpoints.torch_config import public_yaml
    from wroformer_jax.checkpoints.torch_weights import save_torch

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


def _moved_to_jax(tree: Any) -> Any:
    """A tree of JAX arrays; NumPy's are taken out of `tree` one by one, so that memory never holds both in full."""
    import jax.numpy as jnp

    if isinstance(tree, dict):
        return {name: _moved_to_jax(tree.pop(name)) for name in list(tree)}
    return jnp.asarray(tree)


def _check_suffix(source: str, file: str | Path) -> None:
    if Path(file).suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(
            f"{source} is not a checkpoint: expected a model directory, or a {', '.join(CHECKPOINT_SUFFIXES[:-1])} "
            f"or {CHECKPOINT_SUFFIXES[-1]} file"
        )


def _yaml_beside(source: str, path: Path) -> Path | None:
    if source.startswith(hub.PREFIX):
        beside = hub.fetch_yaml(source)
    else:
        candidates = [path.with_suffix(suffix) for suffix in YAML_SUFFIXES]
        beside = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    if beside is not None:
        _log.info("settings from %s", beside)
    return beside


def _not_there(text: str) -> str:
    if suggested := suggestion(text, list(hub.KNOWN)):
        return f"{text} is neither a file nor a known checkpoint{suggested}"
    if os.sep in text or Path(text).suffix:
        return f"{text} does not exist"
    return f"{text} is neither a file nor a known checkpoint ({', '.join(hub.KNOWN)})"
