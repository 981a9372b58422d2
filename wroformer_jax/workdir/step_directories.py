"""The directories of saved steps, WORKDIR/checkpoints/STEP, on disk or in a bucket: read, cleaned up, set aside."""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any

from wroformer_jax.checkpoints.model_dir import COMMITTED
from wroformer_jax.checkpoints.orbax_io import DamagedError, restore_tree
from wroformer_jax.io.buckets import Place, access, is_remote

_log = logging.getLogger("wroformer")


def read_step(directory: Place, params_like: Any, training_like: Any) -> tuple[Any, Any, str | None]:
    """Reads a step.

    Args:
      directory: of the step.
      params_like: the tree of parameters to fill.
      training_like: the tree of the training state to fill.

    Returns:
      The parameters, the training state and None; or None, None and the reason if the step is damaged.

    Raises:
      InputError: the step is of another model or optimiser, or the bucket cannot be reached.
    """
    try:
        params = restore_tree(directory / "params", params_like)
        return params, restore_tree(directory / "training", training_like), None
    except DamagedError as error:
        return None, None, str(error)


def remove_leftovers(directory: Place) -> None:
    """Removes the incomplete steps that interrupted or failed saves left behind.

    Args:
      directory: WORKDIR/checkpoints.

    Raises:
      InputError: the bucket cannot be reached.
    """
    if not is_remote(directory):
        for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
            _remove(leftover)
        return
    with contextlib.suppress(FileNotFoundError), access(directory):  # another process may remove them at the same time
        for step in directory.iterdir() if directory.exists() else ():
            if step.name.isdigit() and not (step / COMMITTED).exists():
                _remove(step)


def set_aside(step: Place, reason: str) -> None:
    """Renames a damaged step to STEP.damaged and logs a warning with the reason."""
    aside = step.parent / f"{step.name}.damaged"
    with access(step):
        if not is_remote(step) or aside.exists():
            _remove(aside)
        step.rename(aside)
    _log.warning("%s is damaged, skipped and renamed to %s: %s", step, aside.name, reason)


def _remove(directory: Place) -> None:
    if isinstance(directory, Path):
        shutil.rmtree(directory, ignore_errors=True)
    else:
        directory.rmtree()
