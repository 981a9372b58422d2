"""The checkpoints of a training run: WORKDIR/model.json and WORKDIR/checkpoints/STEP/{params,training,score}/.

They are written while training goes on, by all processes into one directory or bucket, each what its devices hold. A
step gets its name when all of it is on disk; in a bucket, a file that says so, and is none without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from typing import Any

import jax

from wroformer_jax.checkpoints.model_dir import COMMITTED, is_model_directory, read_model_json, write_model_json
from wroformer_jax.checkpoints.orbax_io import (
    DamagedError,
    absolute,
    muted_log,
    num_bytes,
    quiet_orbax,
    refuse_pattern,
    restore_tree,
    tree_handler,
)
from wroformer_jax.config.model import MEMORY_FIELDS, ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote, place
from wroformer_jax.io.files import check_space, disk_errors_named
from wroformer_jax.parallel.processes import gather, in_first, together

_log = logging.getLogger("wroformer")


class TrainingCheckpoints:
    """The checkpoints in WORKDIR/checkpoints; a thin layer over Orbax's CheckpointManager.

    Use as a context manager, or call `close`. All processes make one, and call its methods at the same steps.

    Args:
      workdir: the directory of the run, or its place in a bucket (gs://), the same for all processes; made if it is not
        there. Gets a model.json, so that `wroformer_jax.load(workdir)` works as soon as a step is saved.
      config: the settings of the model that is trained.
      max_to_keep: how many of the newest steps stay, and the best one beside them; None keeps all.

    Raises:
      InputError: the workdir holds checkpoints of another model, cannot be reached or written, or has a *, ? or [ in
        its path.
    """

    def __init__(self, workdir: str | os.PathLike, config: ModelConfig, *, max_to_keep: int | None = 3) -> None:
        workdir = absolute(place(workdir))
        self.directory = workdir / "checkpoints"
        in_first(lambda: _claim(workdir, config))
        # Orbax can do it, too, but if it fails once, no save succeeds any more.
        in_first(lambda: _remove_leftovers(self.directory))
        self._scores = _Scores(self.directory, max_to_keep)
        self._saving: int | None = None  # the step that is being written
        self._failure: str | None = None  # why the last save failed
        self._outdated = False  # whether Orbax still counts a step that could not be saved
        self._muted = contextlib.ExitStack()
        self._muted.enter_context(muted_log())  # its threads log at any time
        with quiet_orbax() as ocp, access(workdir):
            options, handlers = ocp.options, ocp.handlers
            # Named processes wait for each other through the coordinator. Through the devices, as Orbax has it else,
            # its threads would come between the steps of the training, in each process between others.
            several = {"active_processes": set(range(jax.process_count()))} if jax.process_count() > 1 else {}
            processes = options.MultiprocessingOptions(primary_host=0, **several)
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    preservation_policy=self._scores,
                    enable_async_checkpointing=True,
                    # A place that refuses is known of at once, and before a process waits for another.
                    async_options=options.AsyncOptions(create_directories_asynchronously=False),
                    multiprocessing_options=processes,
                ),
                handler_registry=handlers.create_default_handler_registry(
                    params=tree_handler(ocp, multiprocessing_options=processes),
                    training=tree_handler(ocp, multiprocessing_options=processes),
                    score=ocp.JsonCheckpointHandler(multiprocessing_options=processes),
                ),
            )

    def save(self, step: int, params: Any, training: Any, *, score: float | None = None) -> None:
        """Starts to save one step, and returns when its arrays may be given away; nothing if it is saved already.

        A save that fails, at once or later, does not end the training: a warning says why, what was saved before stays,
        and the next save is the next attempt. `finish` raises if there was none that succeeded.

        Args:
          step: the number of optimiser steps taken.
          params: the parameters, a nested dict of JAX arrays.
          training: whatever else resuming needs (optimiser state, random keys, counters): any pytree of
            arrays, numbers and texts.
          score: how good it is; the highest stays.
        """
        self._settle()
        if step in self.steps():
            return
        self._scores.add(step, score)
        self._saving = step
        error = None
        try:
            num_needed = num_bytes((params, training))
            # Asked by all before one begins: Orbax has processes wait for one whose disk is full.
            obstacles = gather(self._obstacle(num_needed))
            if not any(obstacles):
                self._start(step, params, training)
            else:
                error = next(filter(None, obstacles))
        except Exception as raised:  # whatever a disk or a bucket comes up with must not end the training
            error = _sentence(raised)
        if any(gather(error)):
            self._settle(error)

    def finish(self) -> None:
        """Waits until the last step is on disk.

        Raises:
          InputError: it could not be saved.
        """
        self._settle()
        if self._failure:
            raise InputError(f"the last state could not be saved: {self._failure}")

    def restore(self, params_like: Any, training_like: Any) -> tuple[int, Any, Any] | None:
        """Reads the newest step that is whole.

        A damaged step is passed over with a warning and set aside as STEP.damaged, so that it is neither
        counted among the newest nor in the way when training comes to that step again. A bucket that cannot be reached
        is no damage.

        Args:
          params_like: the tree to fill: arrays, or `jax.ShapeDtypeStruct`, with shardings where that matters.
          training_like: the same for what `save` was given as `training`.

        Returns:
          The step, the parameters and the training state; None if nothing was saved yet.

        Raises:
          InputError: a step is of another model or optimiser, steps were saved and every one is damaged, or the bucket
            cannot be reached.
        """
        self._settle()
        damaged: list[tuple[Place, str]] = []
        [steps, *_] = gather(self.steps())  # as the first sees them: file systems remember listings
        for step in steps[::-1]:
            directory = self.directory / str(step)
            params, training, reason = together(lambda path=directory: _read(path, params_like, training_like))
            if reasons := list(filter(None, gather(reason))):  # in one process or another: each reads its part
                damaged.append((directory, reasons[0]))
                continue
            for path, reason in damaged:
                in_first(lambda path=path, reason=reason: _set_aside(path, reason))
            self._reload()
            return step, params, training
        if damaged:
            raise InputError(
                f"none of the {len(damaged)} checkpoints in {self.directory} can be read, move that directory "
                f"away to start again: {damaged[0][1]}"
            )
        return None

    def steps(self) -> list[int]:
        """The steps on disk and the one that is being written, oldest first."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Waits for what is being written, and releases what Orbax holds."""
        with quiet_orbax():
            for end in (self._manager.wait_until_finished, self._manager.close):
                try:
                    end()
                except Exception as error:  # as in `save`
                    if self._saving is not None:  # else it is known
                        self._warn(_sentence(error))
                        self._saving = None
        self._muted.close()

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self, step: int, params: Any, training: Any) -> None:
        with quiet_orbax() as ocp, disk_errors_named(self.directory / str(step)):
            items = {"params": ocp.args.PyTreeSave(params), "training": ocp.args.PyTreeSave(training)}
            if (score := self._scores.of(step)) is not None:
                items["score"] = ocp.args.JsonSave({"score": score})
            # The caller decides when to save.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def _obstacle(self, num_needed: int) -> str | None:
        """Why nothing can be saved, as far as that is known before."""
        try:
            if self._outdated:
                self._reload()
            if not is_remote(self.directory):
                with disk_errors_named(self.directory):
                    check_space(self.directory, num_needed)
        except Exception as error:  # as in `save`
            return _sentence(error)
        return None

    def _settle(self, error: str | None = None) -> None:
        """Waits for the save under way, and notes in all processes whether it succeeded in all.

        Args:
          error: why it could not even be started.
        """
        if self._saving is None:
            return
        try:
            with quiet_orbax(), disk_errors_named(self.directory / str(self._saving)):
                self._manager.wait_until_finished()
        except Exception as raised:  # as in `save`
            error = error or _sentence(raised)
        self._failure = next(filter(None, gather(error)), None)
        if self._failure:
            self._warn(self._failure)
            self._scores.drop(self._saving)
            with contextlib.suppress(InputError):  # what stays is no checkpoint, and goes when the run goes on
                in_first(lambda: _remove_leftovers(self.directory))
            self._outdated = True
            with contextlib.suppress(Exception):  # a bucket may still refuse: the next save tries again
                self._reload()
        self._saving = None

    def _warn(self, reason: str) -> None:
        _log.warning("checkpoint %s is not saved, the next one is the next attempt: %s", self._saving, reason)

    def _reload(self) -> None:
        """Has Orbax look again at which steps there are."""
        with quiet_orbax():
            self._manager.reload()
        self._outdated = False


class _Scores:
    """How good steps are, and Orbax's rule, from that, of which to keep: the newest, and the best.

    Scores lie in STEP/score/. One that cannot be read is none: that a score is damaged is no reason to lose a run.
    """

    def __init__(self, directory: Place, max_to_keep: int | None) -> None:
        self._directory, self._max_to_keep = directory, max_to_keep
        self._known: dict[int, float] = {}

    def add(self, step: int, score: float | None) -> None:
        if score is not None and math.isfinite(score):
            self._known[step] = score

    def drop(self, step: int) -> None:
        self._known.pop(step, None)

    def of(self, step: int) -> float | None:
        if step in self._known:
            return self._known[step]
        try:
            path = self._directory / str(step) / "score" / "metadata"
            with access(path) if is_remote(path) else contextlib.nullcontext():
                score = json.loads(path.read_text())["score"]
        except InputError:  # it is not known whether there is one
            raise
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(score, float):
            return None
        self._known[step] = score
        return score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each stays, oldest first. Orbax calls this."""
        if self._max_to_keep is None:
            return [True] * len(checkpoints)
        steps = [checkpoint.step for checkpoint in checkpoints]
        try:
            scored = {step: score for step in steps if (score := self.of(step)) is not None}
        except InputError:  # one of them may be the best
            return [True] * len(checkpoints)
        best = max(scored, key=lambda step: (scored[step], step), default=None)
        return [step == best or step in steps[-self._max_to_keep :] for step in steps]


def _read(directory: Place, params_like: Any, training_like: Any) -> tuple[Any, Any, str | None]:
    """Parameters and training state of a step; in place of them, why it is damaged."""
    try:
        params = restore_tree(directory / "params", params_like)
        return params, restore_tree(directory / "training", training_like), None
    except DamagedError as error:
        return None, None, str(error)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _claim(workdir: Place, config: ModelConfig) -> None:
    """Makes the workdir this model's, or checks that it is."""
    refuse_pattern(workdir)
    with disk_errors_named(workdir):
        if not is_remote(workdir):
            (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not is_model_directory(workdir):
            write_model_json(workdir, config)
            return
    there = read_model_json(workdir)[0].to_dict()
    for name, value in config.to_dict().items():
        # These decide how the model is computed, not what its parameters are.
        if name not in ("dtype", *MEMORY_FIELDS) and there[name] != value:
            raise InputError(
                f"{workdir} holds the training of another model: its {name} is {there[name]!r}, not {value!r}; "
                "choose another workdir"
            )


def _remove_leftovers(directory: Place) -> None:
    """Removes what is left of saves that were cut off, or failed.

    Raises:
      InputError: a bucket cannot be reached.
    """
    if not is_remote(directory):
        for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError), access(directory):  # another may remove them, too
        for step in directory.iterdir() if directory.exists() else ():
            if step.name.isdigit() and not (step / COMMITTED).exists():
                step.rmtree()


def _set_aside(step: Place, reason: str) -> None:
    aside = step.parent / f"{step.name}.damaged"
    with access(step):
        if is_remote(step):
            if aside.exists():
                aside.rmtree()
        else:
            shutil.rmtree(aside, ignore_errors=True)
        step.rename(aside)
    _log.warning("%s is damaged, passed over and renamed to %s: %s", step, aside.name, reason)
