"""State, loss, step and loop of a training run."""
