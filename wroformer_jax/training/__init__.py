"""The state, the loss, the step and the loop of a training run."""

from wroformer_jax.training.loop import PreemptedError
from wroformer_jax.training.state import Teacher, TrainState, abstract_state, initial_state
from wroformer_jax.training.step import make_train_step
from wroformer_jax.training.trainer import train

__all__ = ["PreemptedError", "Teacher", "TrainState", "abstract_state", "initial_state", "make_train_step", "train"]
