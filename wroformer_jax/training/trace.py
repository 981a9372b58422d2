"""A trace of some training steps, for xprof or TensorBoard's profile plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class StepTrace:
    """Traces from the first to the last of some steps. Use as a context manager, which stops the trace at the end.

    A run that continues after the first of these steps is not traced.

    Args:
      steps: the first and the last step; empty to trace nothing.
      directory: gets the trace.
    """

    def __init__(self, steps: tuple[int, ...], directory: Path) -> None:
        self._first, self._last = steps or (None, None)
        self._directory = directory
        self._running = False

    def begin(self, step: int, state: Any) -> None:
        """Starts the trace if this is the first of the steps. To be called before each step.

        Args:
          step: its number.
          state: the state before the step; it is waited for, so that nothing of earlier steps is in the trace.
        """
        if step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def end(self, step: int, results: Any) -> None:
        """Stops the trace if this is the last of the steps. To be called after each step.

        Args:
          step: its number.
          results: what the step returned; it is waited for, so that the whole step is in the trace.
        """
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self._stop()

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
