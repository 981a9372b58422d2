"""The checkpoints of a training run: WORKDIR/model.json and WORKDIR/checkpoints/STEP/{params,training}/."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wroformer_jax.checkpoint import is_model_directory, read_model_json, write_model_json
from wroformer_jax.config import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.files import check_space, disk_errors_named
from wroformer_jax.orbax_io import DamagedError, num_bytes, quiet_orbax, refuse_pattern, restore_tree, tree_handler

_log = logging.getLogger("wroformer")


class TrainingCheckpoints:
    """The checkpoints in WORKDIR/checkpoints; a thin layer over Orbax's CheckpointManager.

    Use as a context manager, or call `close`. Saving is synchronous: after `save` the step is on disk.

    Args:
      workdir: the directory of the run; made if it is not there. Gets a model.json, so that
        `wroformer_jax.load(workdir)` works as soon as a step is saved.
      config: the settings of the model that is trained.
      max_to_keep: how many of the newest steps stay; None keeps all.

    Raises:
      InputError: the workdir holds checkpoints of another model, cannot be written, or has a *, ? or [ in its path.
    """

    def __init__(self, workdir: str | os.PathLike, config: ModelConfig, *, max_to_keep: int | None = 3) -> None:
        workdir = Path(workdir).absolute()
        refuse_pattern(workdir)
        self.directory = workdir / "checkpoints"
        with disk_errors_named(workdir):
            self.directory.mkdir(parents=True, exist_ok=True)
            _claim(workdir, config)
        with quiet_orbax() as ocp:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(max_to_keep),
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,
                ),
                handler_registry=ocp.handlers.create_default_handler_registry(
                    params=tree_handler(ocp), training=tree_handler(ocp)
                ),
            )

    def save(self, step: int, params: Any, training: Any) -> None:
        """Saves one step; does nothing if that step is saved already.

        Args:
          step: the number of optimiser steps taken.
          params: the parameters, a nested dict of JAX arrays.
          training: whatever else resuming needs (optimiser state, random keys, counters): any pytree of
            arrays, numbers and texts.

        Raises:
          InputError: the disk is full or refuses; earlier steps are as they were.
        """
        if step in self.steps():
            return
        with self._clean_after_failure(), disk_errors_named(self.directory / str(step)), quiet_orbax() as ocp:
            check_space(self.directory, num_bytes((params, training)))
            self._manager.save(
                step,
                args=ocp.args.Composite(params=ocp.args.PyTreeSave(params), training=ocp.args.PyTreeSave(training)),
                force=True,  # the caller decides when to save
            )

    def restore(self, params_like: Any, training_like: Any) -> tuple[int, Any, Any] | None:
        """Reads the newest step that is whole.

        A damaged step is passed over with a warning and set aside as STEP.damaged, so that it is neither
        counted among the newest nor in the way when training comes to that step again.

        Args:
          params_like: the tree to fill: arrays, or `jax.ShapeDtypeStruct`, with shardings where that matters.
          training_like: the same for what `save` was given as `training`.

        Returns:
          The step, the parameters and the training state; None if nothing was saved yet.

        Raises:
          InputError: a step is of another model or optimiser, or steps were saved and every one is damaged.
        """
        damaged: list[tuple[Path, str]] = []
        for step in self.steps()[::-1]:
            directory = self.directory / str(step)
            try:
                params = restore_tree(directory / "params", params_like)
                training = restore_tree(directory / "training", training_like)
            except DamagedError as error:
                damaged.append((directory, str(error)))
                continue
            for path, reason in damaged:
                _set_aside(path, reason)
            with quiet_orbax():
                self._manager.reload()
            return step, params, training
        if damaged:
            raise InputError(
                f"none of the {len(damaged)} checkpoints in {self.directory} can be read, move that directory "
                f"away to start again: {damaged[0][1]}"
            )
        return None

    def steps(self) -> list[int]:
        """The steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Releases what Orbax holds."""
        with quiet_orbax():
            self._manager.close()

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextlib.contextmanager
    def _clean_after_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
            raise


def _claim(workdir: Path, config: ModelConfig) -> None:
    """Makes the workdir this model's, or checks that it is."""
    if not is_model_directory(workdir):
        write_model_json(workdir, config)
        return
    there = read_model_json(workdir)[0].to_dict()
    for name, value in config.to_dict().items():
        # These decide how the model is computed, not what its parameters are.
        if name not in ("dtype", "remat") and there[name] != value:
            raise InputError(
                f"{workdir} holds the training of another model: its {name} is {there[name]!r}, not {value!r}; "
                "choose another workdir"
            )


def _set_aside(step: Path, reason: str) -> None:
    aside = step.with_name(f"{step.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    step.rename(aside)
    _log.warning("%s is damaged, passed over and renamed to %s: %s", step, aside.name, reason)
