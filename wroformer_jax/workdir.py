"""The directory of a training run: whose it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wroformer_jax.errors import InputError
from wroformer_jax.files import disk_errors_named, replacing
from wroformer_jax.training_config import TrainingConfig

# Settings that do not change what is learnt, so that a resumed run may have them otherwise.
# The songs may have been moved: the fingerprint of the set tells whether they are the same.
_FREE_TO_CHANGE = (
    "data",
    "workers",
    "prefetch",
    "mesh",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "max_skipped",
    "profile_steps",
)


def claim(workdir: Path, config: TrainingConfig) -> None:
    """Makes the workdir this run's: writes config.json, or checks that the one there has the same settings."""
    path = workdir / "config.json"
    with disk_errors_named(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same(workdir, _read_config(path), config.to_dict())
        elif (workdir / "model.json").exists():
            raise InputError(f"{workdir} holds a model but no config.json of a training: choose another workdir")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return TrainingConfig.from_dict(fields).to_dict()
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not the config of a training run ({error}): choose another workdir") from error


def _check_same(workdir: Path, there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> None:
    for name, value in here.items():
        if name in _FREE_TO_CHANGE:
            continue
        if isinstance(value, dict):
            _check_same(workdir, there[name], value, prefix=f"{prefix}{name}.")
        elif there[name] != value:
            raise InputError(
                f"{workdir} holds a run with {prefix}{name} = {there[name]!r}, not {value!r}: set it back to go on "
                "with that run, or choose another workdir"
            )
