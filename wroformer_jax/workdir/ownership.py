"""Which run a workdir belongs to: its config.json and model.json, on disk or in a bucket."""

from __future__ import annotations

import json
from typing import Any

import jax

from wroformer_jax.checkpoints.model_dir import is_model_directory, read_model_json, write_model_json
from wroformer_jax.checkpoints.orbax_io import refuse_pattern
from wroformer_jax.config.model import MEMORY_FIELDS, ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote, write_whole
from wroformer_jax.io.files import disk_errors_named
from wroformer_jax.parallel.processes import gather, together

CONFIG = "config.json"

# Settings that do not change what is learnt, so a resumed run may have other values. `data` may change because songs
# can be moved; the fingerprint of the set shows whether they are still the same.
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
    """Assigns the workdir to this run: writes config.json, or checks that an existing one has the same settings.

    A directory in a bucket cannot be locked, so this does not notice another run that uses it at the same time.

    Args:
      workdir: local, or in a bucket (see `io.buckets.place`).
      config: the settings of the run.

    Raises:
      InputError: the workdir holds another run or a model, or cannot be written.
    """
    with disk_errors_named(workdir):
        if not is_remote(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        refuse_other(workdir, config)
        write_whole(workdir / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n")


def check_shared(workdir: Place) -> None:
    """Checks that all processes see the workdir that the first process has claimed.

    Raises:
      InputError: in every process, if one of them does not see it.
    """
    if jax.process_count() == 1:
        return

    def read() -> str | None:
        with access(workdir):
            return (workdir / CONFIG).read_text(encoding="utf-8") if (workdir / CONFIG).exists() else None

    texts = gather(together(read))
    blind = [str(process) for process, text in enumerate(texts) if text != texts[0]]
    if blind:
        raise InputError(
            f"process {', '.join(blind)} does not see the workdir {workdir} of the first process: all hosts need a "
            "shared one, on a network file system or in a bucket (gs://BUCKET/RUN)"
        )


def refuse_other(workdir: Place, config: TrainingConfig) -> None:
    """Checks that the workdir is free or belongs to this run.

    Raises:
      InputError: the workdir holds a run with other settings, or a model, or cannot be read.
    """
    path = workdir / CONFIG
    with disk_errors_named(workdir):
        if (found := _read_config(path)) is not None:
            _check_same(workdir, found, config.to_dict())
        elif is_model_directory(workdir):
            raise InputError(f"{workdir} holds a model but no config.json of a training: choose another workdir")


def claim_for_model(workdir: Place, config: ModelConfig) -> None:
    """Writes WORKDIR/model.json, or checks that an existing one describes the same model.

    Raises:
      InputError: the workdir holds another model, cannot be written, or has a *, ? or [ in its path.
    """
    refuse_pattern(workdir)
    with disk_errors_named(workdir):
        if not is_remote(workdir):
            (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not is_model_directory(workdir):
            write_model_json(workdir, config)
            return
    found = read_model_json(workdir)[0].to_dict()
    for name, value in config.to_dict().items():
        # dtype and the memory fields decide how the model is computed, not what its parameters are.
        if name not in ("dtype", *MEMORY_FIELDS) and found[name] != value:
            raise InputError(
                f"{workdir} holds the training of another model: its {name} is {found[name]!r}, not {value!r}; "
                "choose another workdir"
            )


def _read_config(path: Place) -> dict[str, Any] | None:
    """Returns the settings of the run in a workdir, or None if there is no run."""
    with access(path):
        if not path.exists():
            return None
        text = path.read_bytes()
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or "model" not in fields:  # every run writes all of its settings
            raise ValueError("it has no 'model' section")
        return TrainingConfig.from_dict(fields).to_dict()
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
