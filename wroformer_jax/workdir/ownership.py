"""The directory of a training run, or its place in a bucket: whose it is."""

from __future__ import annotations

import json
from typing import Any

import jax

from wroformer_jax.checkpoints.model_dir import is_model_directory
from wroformer_jax.config.model import MEMORY_FIELDS
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote, write_whole
from wroformer_jax.io.files import disk_errors_named
from wroformer_jax.parallel.processes import gather, together

CONFIG = "config.json"

# Settings that do not change what is learnt, so that a resumed run may have them otherwise.
# The songs may have been moved: the fingerprint of the set tells whether they are the same.
_FREE_TO_CHANGE = (
    "data",
    "loading",
    "mesh",
    "logging",
    "validation.every",
    "checkpoints",
    "optimizer.max_skipped",
    "profile_steps",
    *(f"model.{name}" for name in MEMORY_FIELDS if name != "stream_dtype"),
)

_LONGER = ": to train for longer, start a new run there from this one's weights (--config.init=THIS_WORKDIR)"


def claim(workdir: Place, config: TrainingConfig) -> None:
    """Makes the workdir this run's: writes config.json, or checks that the one there has the same settings.

    Nothing in a bucket can be held: that no other run goes on in the same place at the same time is not checked there.

    Args:
      workdir: local, or a path in a bucket (`data.buckets.place`).
      config: the settings of the run.

    Raises:
      InputError: the workdir holds another run or a model, or it cannot be written.
    """
    with disk_errors_named(workdir):
        if not is_remote(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        refuse_other(workdir, config)
        write_whole(workdir / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n")


def check_shared(workdir: Place) -> None:
    """Raises an InputError, in all processes, if one does not see the workdir that the first has claimed."""
    if jax.process_count() == 1:
        return

    def read() -> str | None:
        with access(workdir):
            return (workdir / CONFIG).read_text(encoding="utf-8") if (workdir / CONFIG).exists() else None

    there = gather(together(read))
    blind = [str(process) for process, text in enumerate(there) if text != there[0]]
    if blind:
        raise InputError(
            f"process {', '.join(blind)} does not see the workdir {workdir} of the first: all hosts need one that they "
            "share, on a network file system or in a bucket (gs://BUCKET/RUN)"
        )


def refuse_other(workdir: Place, config: TrainingConfig) -> None:
    """Raises an InputError if the workdir holds a run with other settings, or a model, or cannot be read."""
    path = workdir / CONFIG
    with disk_errors_named(workdir):
        if (there := _read_config(path)) is not None:
            _check_same(workdir, there, config.to_dict())
        elif is_model_directory(workdir):
            raise InputError(f"{workdir} holds a model but no config.json of a training: choose another workdir")


def _read_config(path: Place) -> dict[str, Any] | None:
    """The settings of the run that is there, None if there is none."""
    with access(path):
        if not path.exists():
            return None
        text = path.read_bytes()
    try:
        return TrainingConfig.from_dict(json.loads(text)).to_dict()
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not the config of a training run ({error}): choose another workdir") from error


def _check_same(workdir: Place, there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> None:
    for name, value in here.items():
        if prefix + name in _FREE_TO_CHANGE:
            continue
        if isinstance(value, dict):
            _check_same(workdir, there[name], value, prefix=f"{prefix}{name}.")
        elif there[name] != value:
            raise InputError(
                f"{workdir} holds a run with {prefix}{name} = {there[name]!r}, not {value!r}: set it back to go on "
                f"with that run, or choose another workdir{_LONGER if name == 'steps' else ''}"
            )
