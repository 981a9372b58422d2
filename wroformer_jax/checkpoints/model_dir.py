"""Writes and reads model directories, the format that loads fastest.

`save_model` and the converter write a model directory::

    DIR/model.json   {"format": 1, "model": the ModelConfig, "torch": the TorchLayout of the PyTorch file, or null}
    DIR/params/      an Orbax PyTree of the parameters

A training workdir (see workdir/checkpoints.py) has the same model.json, and `WORKDIR/checkpoints/STEP/params/` in
place of params/. `load_model` reads both, also in buckets (gs://). Local files are written under a temporary name and
renamed once they are complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wroformer_jax.checkpoints.orbax_io import (
    DamagedError,
    check_leaves,
    num_bytes,
    refuse_pattern,
    restore_tree,
    save_tree,
)
from wroformer_jax.checkpoints.torch_weights import TorchLayout
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote, place, write_whole
from wroformer_jax.io.files import check_space, disk_errors_named, exists, open_to_others, refuse_existing, replacing
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer

MODEL = "model.json"
FORMAT = 1  # version of model.json; to be raised when an older reader would misread what is written
# A bucket cannot rename: Orbax writes a step under its final name, and this file last, to mark it complete.
COMMITTED = "commit_success.txt"

_REPLACED = ".{}-replaced-"  # prefix of the temporary directory that holds an overwritten model directory

_log = logging.getLogger("wroformer")


def save_model(
    path: str | os.PathLike,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    torch_layout: TorchLayout | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model directory.

    Args:
      path: the directory to make; its parents are made too.
      config: the settings of the model.
      params: its parameters, a nested dict of JAX or NumPy arrays.
      torch_layout: the layout of the PyTorch file that the weights came from, so that it can be written again.
      overwrite: replace an earlier model directory of that name.

    Raises:
      InputError: `path` exists (with `overwrite`: and is not a model directory), the parameters do not fit the
        settings, the path contains *, ? or [, or the disk is full or refuses.
    """
    path = Path(path)
    check_leaves(f"the parameters to save in {path}", params, _expected_params(config))
    with _new_directory(path, overwrite=overwrite, needs=num_bytes(params)) as temporary:
        write_model_json(temporary, config, torch_layout)
        save_tree(temporary / "params", params)


def load_model(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Any], TorchLayout | None]:
    """Reads a model directory, or the newest complete checkpoint of a training workdir, local or in a bucket (gs://).

    Returns:
      The settings, the parameters as a nested dict of float32 NumPy arrays, and the layout of the PyTorch file that
      they came from (None if they came from none).

    Raises:
      InputError: the directory does not exist, is of another kind or is damaged, or the bucket cannot be reached.
    """
    path = place(path)
    config, torch_layout = read_model_json(path)
    expected = _expected_params(config)
    if _is_directory(path / "params"):
        try:
            return config, restore_tree(path / "params", expected, to_numpy=True), torch_layout
        except DamagedError as error:
            raise InputError(
                f"{path / 'params'} is damaged or incomplete, convert or copy it again: {error}"
            ) from error
    for step in saved_steps(path):
        try:
            params = restore_tree(step / "params", expected, to_numpy=True)
        except DamagedError as error:
            _log.warning("%s is damaged and passed over: %s", step, error)
        else:
            return config, params, torch_layout
    raise InputError(f"{path} holds no whole checkpoint: train for longer, or name another directory")


def saved_steps(workdir: Place) -> list[Place]:
    """Returns the directories of a workdir's complete steps, newest first. The workdir may be in a bucket.

    Raises:
      InputError: the directory or the bucket cannot be read.
    """
    checkpoints = workdir / "checkpoints"
    with access(checkpoints):
        names = [entry.name for entry in checkpoints.iterdir()] if _is_directory(checkpoints) else []
        steps = [checkpoints / name for name in sorted(filter(str.isdigit, names), key=int, reverse=True)]
        # A local step is renamed into place once it is complete.
        return [step for step in steps if (step / COMMITTED).exists()] if is_remote(workdir) else steps


def is_model_directory(path: str | os.PathLike) -> bool:
    """Returns whether `path`, local or in a bucket, is a model directory or a training workdir, complete or not.

    Raises:
      InputError: the bucket cannot be reached.
    """
    with access(path):
        return (place(path) / MODEL).is_file()


def write_model_json(directory: Place, config: ModelConfig, torch_layout: TorchLayout | None = None) -> None:
    """Writes model.json into a directory, which may be in a bucket.

    The model will be computed on other devices, too, so that it does not keep the form of attention of one of them.
    """
    fields = {
        "format": FORMAT,
        "model": dataclasses.replace(config, attention_impl="auto").to_dict(),
        "torch": None if torch_layout is None else torch_layout.to_dict(),
    }
    text = json.dumps(fields, indent=1) + "\n"
    if is_remote(directory):
        write_whole(directory / MODEL, text)
        return
    with replacing(directory / MODEL) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_model_json(directory: Place) -> tuple[ModelConfig, TorchLayout | None]:
    """Reads model.json from a directory, which may be in a bucket.

    Raises:
      InputError: the directory does not exist, or its model.json is missing, damaged or of another version.
    """
    file = directory / MODEL
    if not is_remote(directory):  # a bucket has no directories
        if not exists(Path(directory)):
            raise InputError(_missing(Path(directory)))
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory")
    try:
        with access(file) if is_remote(file) else contextlib.nullcontext():
            text = file.read_text(encoding="utf-8")
        fields = json.loads(text)
    except FileNotFoundError as error:
        raise InputError(
            f"{directory} has no model.json, so it is neither a model directory nor a training workdir"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged: it is not JSON ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
        raise InputError(f"{file} does not describe a model: it has no 'model' section")
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{file} has format {fields.get('format')!r}, this version reads {FORMAT}: update wroformer-jax, "
            "or convert the PyTorch checkpoint again"
        )
    if unknown := sorted(set(fields) - {"format", "model", "torch"}):
        raise InputError(f"{file} has an unknown field {unknown[0]!r}")
    try:
        return ModelConfig.from_dict(_present(fields["model"])), _torch_layout(fields.get("torch"))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _present(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a model's fields as they would be saved today.

    Before there was an `attention_impl`, everything at once (0) was the default of `places_at_once`, chosen by nobody.
    """
    if "attention_impl" not in model and model.get("places_at_once") == 0:
        return {**model, "places_at_once": None}
    return model


def _is_directory(path: Place) -> bool:
    with access(path):
        # A bucket that refuses access raises an error at the first request only, so `is_dir` alone is not enough.
        return path.exists() and path.is_dir()


def _torch_layout(fields: Any) -> TorchLayout | None:
    if fields is None:
        return None
    try:
        return TorchLayout.from_dict(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the 'torch' section is damaged ({error})") from error


def _missing(directory: Path) -> str:
    name, holder = glob.escape(directory.name), glob.escape(_REPLACED.format(directory.name))
    for replaced in directory.parent.glob(f"{holder}*/{name}"):
        if is_model_directory(replaced):
            return f"{directory} does not exist, but an interrupted overwrite left {replaced}: move it back"
    return f"{directory} does not exist"


@functools.cache
def _expected_params(config: ModelConfig) -> Any:
    """Returns the shapes and dtypes of a model's parameters; computes nothing."""
    return abstract_params(RoFormer(config))


@contextlib.contextmanager
def _new_directory(path: Path, *, overwrite: bool, needs: int) -> Iterator[Path]:
    """Yields an empty directory beside `path`; renames it to `path` when the block succeeds, else removes it."""
    refuse_existing(path, overwrite=overwrite)
    if path.exists() and not ((path / "params").is_dir() and is_model_directory(path)):
        raise InputError(f"{path} is not a model directory, so it is not overwritten: choose another name")
    with disk_errors_named(path):
        path = Path(os.path.realpath(path))  # overwrite the target of a link, not the link
        refuse_pattern(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path.parent, needs)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        try:
            yield temporary
            open_to_others(temporary)
            _take_name(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_name(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    # A directory cannot be renamed onto another. A kill between the two renames leaves the earlier directory
    # complete, but under another name; `load_model` then tells the user where it is.
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=_REPLACED.format(path.name)))
    try:
        replaced = path.rename(aside / path.name)
        try:
            temporary.rename(path)
        except BaseException:
            replaced.rename(path)
            raise
        shutil.rmtree(replaced)
    finally:
        with contextlib.suppress(OSError):  # not empty: it holds what could not be put back or deleted
            aside.rmdir()
