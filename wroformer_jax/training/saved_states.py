"""Saves the state of a run, and restores it."""

from __future__ import annotations

import json
from typing import Any

from jax.sharding import Mesh

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches
from wroformer_jax.io.buckets import Place
from wroformer_jax.model.layers import Params
from wroformer_jax.parallel.processes import together
from wroformer_jax.training.initialisation import starting_params
from wroformer_jax.training.state import TrainState, abstract_state, initial_state, params_to_use
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.mirror import Mirror

Interval = list[dict[str, float]]  # the metrics of each step since the last log


class SavedStates:
    """Saves and restores the state of a run, the position in the data, and the metrics that are not logged yet.

    Args:
      config: the settings of the run.
      mesh: the devices that hold the state.
      checkpoints: where states are saved.
      loader: the batches, whose position is saved with a state.
      mirror: uploads the log if the workdir is in a bucket, else None.
    """

    def __init__(
        self,
        config: TrainingConfig,
        mesh: Mesh,
        checkpoints: TrainingCheckpoints,
        loader: Batches,
        mirror: Mirror | None,
    ) -> None:
        self._config, self._mesh = config, mesh
        self._checkpoints, self._loader, self._mirror = checkpoints, loader, mirror

    @property
    def workdir(self) -> Place:
        """Of the run."""
        return self._checkpoints.directory.parent

    def restore(self, init: Params | None) -> tuple[TrainState, Interval]:
        """Returns the newest saved state and moves the loader to it; returns the state of step 0 if none is saved.

        Args:
          init: the weights of step 0; None for those that `config.init` names, or random ones.
        """
        like = abstract_state(self._config, self._mesh)
        restored = self._checkpoints.restore(params_to_use(like), self._training_tree(like, []))
        if restored is None:
            params = together(lambda: starting_params(self._config)) if init is None else init
            return initial_state(self._config, self._mesh, params), []
        _, params, training = restored
        position, interval = json.loads(training.pop("data")), json.loads(training.pop("interval"))
        together(lambda: self._loader.set_state(position))
        if self._config.optimizer.ema:
            return TrainState(**training, ema=params), interval
        return TrainState(**training, params=params, ema=None), interval

    def save(self, step: int, state: TrainState, interval: Interval, score: float | None) -> None:
        """Starts to save a state, and returns when its arrays may be donated.

        Args:
          step: the number of steps taken.
          state: the state after that step; the loader has given the batch of that step, and no more.
          interval: the metrics of the steps since the last log.
          score: the score of the validation after that step, None without one. The checkpoint with the highest score is
            kept.
        """
        if self._mirror:  # the log of a step is uploaded before the step itself
            self._mirror.copy()
        training = self._training_tree(state, interval)
        self._checkpoints.save(step, params_to_use(state), training, score=score)

    def finish(self) -> None:
        """Waits until the save under way is complete.

        Raises:
          InputError: the last state could not be saved.
        """
        self._checkpoints.finish()

    def _training_tree(self, state: TrainState, interval: Interval) -> dict[str, Any]:
        """Returns what resuming needs, without the parameters to use, which are saved separately."""
        saved_apart = ("ema",) if state.ema is not None else ("params", "ema")
        tree = {name: value for name, value in state._asdict().items() if name not in saved_apart}
        return {**tree, "data": json.dumps(self._loader.get_state()), "interval": json.dumps(interval)}
