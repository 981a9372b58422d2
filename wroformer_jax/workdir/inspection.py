"""Looks into the directory of a training run or a model without reading weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from wroformer_jax.checkpoints.model_dir import COMMITTED, read_model_json
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote, num_bytes, place
from wroformer_jax.workdir.log import read_records

_WRITING = ".orbax-checkpoint-tmp"  # in the name of a step that is not complete yet
_DAMAGED = ".damaged"  # at the end of the name of a step that a run could not read, see step_directories.py
_NEEDED = ("_METADATA", "manifest.ocdbt")  # files that Orbax writes for each tree of a step


class Parameter(NamedTuple):
    """A parameter array of a model."""

    name: str  # its path in the tree, "blocks/time/mixer_0/to_qkv/kernel"
    shape: tuple[int, ...]
    dtype: str
    count: int  # number of values, without the padding of narrow bands
    trained: bool  # False for a constant

    @property
    def module(self) -> str:
        """The part of the model that the parameter belongs to, such as "blocks/time"."""
        first, *rest = self.name.split("/")
        return f"{first}/{rest[0]}" if first == "blocks" else first


class SavedStep(NamedTuple):
    """A checkpoint of a run."""

    name: str  # of its directory
    num_bytes: int
    saved: float | None  # seconds since 1970, None if unknown
    score: float | None  # mean uSDR of the validation in dB
    problem: str | None  # why the checkpoint cannot be used


class Inspection(NamedTuple):
    """The content of the directory of a run or a model."""

    directory: Place
    model: ModelConfig
    training: dict[str, Any] | None  # the settings of the run without "model"; None for a model directory
    checkpoints: tuple[SavedStep, ...]  # oldest first
    records: list[dict[str, Any]]  # of metrics.jsonl

    @property
    def newest(self) -> str | None:
        """The name of the checkpoint from which the run would continue."""
        return max((step.name for step in self.checkpoints if not step.problem), key=int, default=None)

    @property
    def best(self) -> str | None:
        """The name of the checkpoint with the highest score."""
        scored = [step for step in self.checkpoints if not step.problem and step.score is not None]
        return max(scored, key=lambda step: (step.score, int(step.name))).name if scored else None

    def curve(self, kind: str, scalar: str) -> list[tuple[int, float]]:
        """Returns (step, value) of a scalar from all records of a kind, "train" or "validation", where it is finite."""
        found = [record for record in self.records if record.get("kind") == kind and scalar in record]
        return [(record["step"], record[scalar]) for record in found if math.isfinite(record[scalar])]


def inspect_directory(directory: str | os.PathLike) -> Inspection:
    """Inspects a training workdir, even while the run goes on, or a model directory.

    Arrays are not read, so damage inside them is not noticed.

    Raises:
      InputError: the directory is neither, or its model.json or config.json is damaged.
    """
    directory = place(directory)
    with access(directory):
        has_model, training = (directory / "model.json").exists(), _training(directory / "config.json")
    if training is not None and not has_model:  # the run has just begun
        model = _model_of(directory / "config.json", training)
    else:
        model, _ = read_model_json(directory)
    if training is None:
        return Inspection(directory, model, None, (), [])
    settings = {name: value for name, value in training.items() if name != "model"}
    with access(directory):
        records = read_records(directory / "metrics.jsonl")
        return Inspection(directory, model, settings, tuple(_saved_steps(directory / "checkpoints")), records)


def parameters(config: ModelConfig) -> list[Parameter]:
    """Returns the parameters of a model in the order of the tree, from its settings alone."""
    import jax

    from wroformer_jax.checkpoints.torch_weights import slots
    from wroformer_jax.model.params import abstract_params, trainable_mask
    from wroformer_jax.model.roformer import RoFormer

    real: dict[str, int] = {}
    for slot in slots(config):
        name = "/".join(slot.path)
        real[name] = real.get(name, 0) + math.prod(slot.shape)
    tree = abstract_params(RoFormer(config))
    leaves, trained = jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(trainable_mask(tree))
    found = []
    for (path, leaf), is_trained in zip(leaves, trained, strict=True):
        name = "/".join(key.key for key in path)
        # A PyTorch file repeats the constants in every layer, so `real` would count them several times.
        count = real[name] if is_trained else leaf.size
        found.append(Parameter(name, leaf.shape, leaf.dtype.name, count, is_trained))
    return found


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` of the steps, evenly spaced, including the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _training(path: Place) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
        raise InputError(f"{path} is not the config of a training run: it has no 'model' section")
    return fields


def _model_of(path: Place, training: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_dict(training["model"])
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def _saved_steps(checkpoints: Place) -> Iterator[SavedStep]:
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.exists() else []
    named = {name: name.partition(".")[0] for name in names}  # "40", "40.damaged", "40.orbax-checkpoint-tmp"
    for name in sorted((name for name, step in named.items() if step.isdigit()), key=lambda name: int(named[name])):
        step = checkpoints / name
        size = sum(_size(file) for file in _files(step))
        if not step.exists():  # the run has removed it in the meantime
            continue
        saved = _read_json(step / "_CHECKPOINT_METADATA").get("commit_timestamp_nsecs")
        score = _read_json(step / "score" / "metadata").get("score")
        yield SavedStep(
            name=name,
            num_bytes=size,
            saved=saved / 1e9 if saved else None,
            score=score if isinstance(score, float) else None,
            problem=_problem(step),
        )


def _problem(step: Place) -> str | None:
    if _WRITING in step.name or (is_remote(step) and step.name.isdigit() and not (step / COMMITTED).exists()):
        return "being written, or left by a crash"
    if step.name.endswith(_DAMAGED):
        return "damaged, set aside"
    if not step.name.isdigit():
        return "unknown"
    for file in (f"{tree}/{name}" for tree in ("params", "training") for name in _NEEDED):
        if not _size(step / file):
            return f"damaged: {file} is missing or empty"
    return None


def _files(directory: Place) -> Iterator[Place]:
    try:
        entries = list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # removed in the meantime
        return
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _size(file: Place) -> int:
    """Returns the size of a file in bytes, 0 if it does not exist."""
    try:
        return num_bytes(file)
    except FileNotFoundError:
        return 0


def _read_json(path: Place) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
