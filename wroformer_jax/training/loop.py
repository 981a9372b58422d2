"""The loop over the steps of a run: step, log, validate, save."""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.sharding import Mesh

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches
from wroformer_jax.errors import InputError
from wroformer_jax.model.layers import Params
from wroformer_jax.parallel.processes import Preemption, whole_here
from wroformer_jax.parallel.sharding import to_global
from wroformer_jax.training.monitor import Monitor
from wroformer_jax.training.saved_states import SavedStates
from wroformer_jax.training.state import TrainState, batch_shapes, params_to_use
from wroformer_jax.training.step import TrainStep
from wroformer_jax.training.trace import StepTrace
from wroformer_jax.training.validation import Validation


class PreemptedError(Exception):
    """The machine will be taken away: the state is saved, and the same command continues from there."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop and its parts. It writes the log, the validation and the checkpoint of a step in this order."""

    config: TrainingConfig
    mesh: Mesh
    loader: Batches
    monitor: Monitor
    validation: Validation
    states: SavedStates
    preemption: Preemption
    trace: StepTrace

    def run(self, state: TrainState, train_step: TrainStep) -> TrainState:
        """Takes the steps that are left, and returns the state after the last one, which is saved.

        Raises:
          InputError: too many steps in a row had a loss or gradient that is not finite, batches cannot be loaded, or
            the last state cannot be saved.
          PreemptedError: SIGTERM came, and the state after the step under way is saved.
        """
        # The scores of the state at the start, which a run that was preempted may have had no time for.
        self._validate_if_missing(state)
        first, shapes = int(state.step) + 1, batch_shapes(self.config, self.mesh)
        self.monitor.start()
        with self.trace:
            for step in range(first, self.config.steps + 1):
                batch = self._next_batch()
                self.trace.begin(step, state)
                state, metrics = train_step(state, to_global(batch, self.mesh, shapes))
                self.trace.end(step, metrics)
                self.monitor.take(step, metrics, batch)
                if step == first:
                    self.monitor.first_step_taken()
                self._validate_and_save(step, state)
        self.states.finish()
        self._validate_if_missing(state)  # where the log of a finished run was lost
        return state

    def _validate_and_save(self, step: int, state: TrainState) -> None:
        """Does what is due after a step."""
        last = step == self.config.steps
        preempted = self.preemption.reached() and not last
        validate = self.validation.is_due(step) and not preempted
        if not (validate or preempted or last or step % self.config.checkpoints.every == 0):
            return
        score = None
        with self.monitor.paused():
            if validate:
                score = self.validation.run(step, self._params(state), stop=lambda: self.preemption.noticed)
                preempted = score is None  # the continued run validates first
            self.states.save(step, state, self.monitor.interval, score)
        if preempted:
            self.states.finish()
            raise PreemptedError(f"step {step} of {self.config.steps} is saved in {self.states.workdir}")

    def _validate_if_missing(self, state: TrainState) -> None:
        if self.validation.is_missing(int(state.step)):
            self.validation.run(int(state.step), self._params(state))

    def _params(self, state: TrainState) -> Params:
        return whole_here(params_to_use(state), self.mesh)

    def _next_batch(self) -> dict[str, np.ndarray]:
        try:
            return next(self.loader)
        except InputError:
            if not self.preemption.comes(1.0):  # the workers get SIGTERM, too, and maybe before this process
                raise
            return next(self.loader)  # new workers continue where the former ones were
