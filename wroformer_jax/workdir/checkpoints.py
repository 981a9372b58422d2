"""The checkpoints of a training run: WORKDIR/model.json and WORKDIR/checkpoints/STEP/{params,training,score}/.

Saving goes on while training does. All processes write to one directory or bucket, each what its devices hold. On disk,
a step directory is renamed into place once it is complete; in a bucket, a file `commit_success.txt` marks it complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import jax

from wroformer_jax.checkpoints.orbax_io import absolute, muted_log, num_bytes, quiet_orbax, tree_handler
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote, place
from wroformer_jax.io.files import check_space, disk_errors_named
from wroformer_jax.parallel.processes import gather, in_first, together
from wroformer_jax.workdir.ownership import claim_for_model
from wroformer_jax.workdir.retention import Retention
from wroformer_jax.workdir.step_directories import read_step, remove_leftovers, set_aside

_log = logging.getLogger("wroformer")


class TrainingCheckpoints:
    """Saves and restores the steps in WORKDIR/checkpoints, through Orbax's CheckpointManager.

    Use as a context manager, or call `close`. Every process creates one, and calls its methods at the same steps.

    Args:
      workdir: the directory of the run, or its path in a bucket (gs://), the same for all processes. It is created if
        need be, and gets a model.json, so that `wroformer_jax.load(workdir)` works as soon as a step is saved.
      config: the settings of the model that is trained.
      max_to_keep: how many of the newest steps are kept besides the best one; None keeps all.

    Raises:
      InputError: the workdir holds checkpoints of another model, cannot be reached or written, or has a *, ? or [ in
        its path.
    """

    def __init__(self, workdir: str | os.PathLike, config: ModelConfig, *, max_to_keep: int | None = 3) -> None:
        workdir = absolute(place(workdir))
        self.directory = workdir / "checkpoints"
        in_first(lambda: claim_for_model(workdir, config))
        # Orbax can do this itself, but if it fails once there, no later save succeeds.
        in_first(lambda: remove_leftovers(self.directory))
        self._retention = Retention(self.directory, max_to_keep)
        self._saving: int | None = None  # the step whose save is under way
        self._failure: str | None = None  # why the last save failed
        self._outdated = False  # whether Orbax still lists a step that could not be saved
        self._muted = contextlib.ExitStack()
        self._muted.enter_context(muted_log())  # Orbax's threads log at any time
        with quiet_orbax() as ocp, access(workdir):
            options, handlers = ocp.options, ocp.handlers
            # Processes that are named here wait for each other through the coordinator. By default they would wait
            # through the devices, and Orbax's threads would interleave with the training steps, differently in each
            # process.
            several = {"active_processes": set(range(jax.process_count()))} if jax.process_count() > 1 else {}
            processes = options.MultiprocessingOptions(primary_host=0, **several)
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    preservation_policy=self._retention,
                    enable_async_checkpointing=True,
                    # A directory that cannot be written fails at once, before a process waits for another.
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
        """Starts to save a step, and returns once its arrays may be donated. Does nothing if the step is saved already.

        A save that fails, at once or later, does not end the training: it logs a warning with the reason, earlier steps
        stay, and the next call tries again. `finish` raises an error if the last save failed.

        Args:
          step: the number of optimiser steps taken.
          params: the parameters, a nested dict of JAX arrays.
          training: everything else that resuming needs (optimiser state, random keys, counters), a pytree of arrays,
            numbers and strings.
          score: the step's quality; the step with the highest score is kept.
        """
        self._wait()
        if step in self.steps():
            return
        self._retention.add(step, score)
        self._saving = step
        error = None
        try:
            num_needed = num_bytes((params, training))
            # All processes check before any starts: Orbax would let them wait for one whose disk is full.
            obstacles = gather(self._obstacle(num_needed))
            if not any(obstacles):
                self._start(step, params, training)
            else:
                error = next(filter(None, obstacles))
        except Exception as raised:  # no failure of a disk or bucket may end the training
            error = _sentence(raised)
        if any(gather(error)):
            self._wait(error)

    def finish(self) -> None:
        """Waits until the last step is on disk.

        Raises:
          InputError: it could not be saved.
        """
        self._wait()
        if self._failure:
            raise InputError(f"the last state could not be saved: {self._failure}")

    def restore(self, params_like: Any, training_like: Any) -> tuple[int, Any, Any] | None:
        """Reads the newest undamaged step.

        A damaged step is skipped with a warning and renamed to STEP.damaged, so that it neither counts as one of the
        newest nor blocks the same step when training reaches it again. An unreachable bucket does not count as damage.

        Args:
          params_like: the tree to fill: arrays, or `jax.ShapeDtypeStruct`, with shardings if they matter.
          training_like: the same for the `training` that `save` was given.

        Returns:
          The step, the parameters and the training state; None if no step was saved yet.

        Raises:
          InputError: a step is of another model or optimiser, all saved steps are damaged, or the bucket cannot be
            reached.
        """
        self._wait()
        damaged: list[tuple[Place, str]] = []
        [steps, *_] = gather(self.steps())  # the first process decides: file systems cache listings
        for step in steps[::-1]:
            directory = self.directory / str(step)
            params, training, reason = together(lambda path=directory: read_step(path, params_like, training_like))
            if reasons := list(filter(None, gather(reason))):  # of any process: each reads its own part
                damaged.append((directory, reasons[0]))
                continue
            for path, reason in damaged:
                in_first(lambda path=path, reason=reason: set_aside(path, reason))
            self._reload()
            return step, params, training
        if damaged:
            raise InputError(
                f"none of the {len(damaged)} checkpoints in {self.directory} can be read, move that directory "
                f"away to start again: {damaged[0][1]}"
            )
        return None

    def steps(self) -> list[int]:
        """Returns the steps on disk and the one whose save is under way, oldest first."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Waits for the save under way and releases Orbax's threads."""
        with quiet_orbax():
            for end in (self._manager.wait_until_finished, self._manager.close):
                try:
                    end()
                except Exception as error:  # as in `save`
                    if self._saving is not None:  # else it has been reported
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
            if (score := self._retention.score_of(step)) is not None:
                items["score"] = ocp.args.JsonSave({"score": score})
            # force: the caller has decided that this step is saved
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def _obstacle(self, num_needed: int) -> str | None:
        """Returns the reason why a save would fail, as far as this can be known before; else None."""
        try:
            if self._outdated:
                self._reload()
            if not is_remote(self.directory):
                with disk_errors_named(self.directory):
                    check_space(self.directory, num_needed)
        except Exception as error:  # as in `save`
            return _sentence(error)
        return None

    def _wait(self, error: str | None = None) -> None:
        """Waits for the save under way; afterwards every process knows whether it succeeded in all of them.

        Args:
          error: the reason if this process could not even start the save.
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
            self._retention.drop(self._saving)
            with contextlib.suppress(InputError):  # else they are removed when the run is resumed
                in_first(lambda: remove_leftovers(self.directory))
            self._outdated = True
            with contextlib.suppress(Exception):  # the bucket may still refuse; the next save tries again
                self._reload()
        self._saving = None

    def _warn(self, reason: str) -> None:
        _log.warning("checkpoint %s could not be saved, the next save will try again: %s", self._saving, reason)

    def _reload(self) -> None:
        """Makes Orbax list the steps anew."""
        with quiet_orbax():
            self._manager.reload()
        self._outdated = False


def _sentence(error: Exception) -> str:
    """Returns the error's text on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
