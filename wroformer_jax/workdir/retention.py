"""The rule by which checkpoints of a run are kept: the newest ones, and the one with the best score."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote


class Retention:
    """Keeps the newest steps and the best one; an Orbax preservation policy.

    Scores are read from STEP/score/. An unreadable score is treated as missing, so that it never ends a run.

    Args:
      directory: WORKDIR/checkpoints.
      max_to_keep: how many of the newest steps are kept; None keeps all steps.
    """

    def __init__(self, directory: Place, max_to_keep: int | None) -> None:
        self._directory, self._max_to_keep = directory, max_to_keep
        self._known: dict[int, float] = {}

    def add(self, step: int, score: float | None) -> None:
        """Notes the score of a step that is about to be saved; None or NaN if it has none."""
        if score is not None and math.isfinite(score):
            self._known[step] = score

    def drop(self, step: int) -> None:
        """Forgets a step that could not be saved."""
        self._known.pop(step, None)

    def score_of(self, step: int) -> float | None:
        """Returns the score of a step, or None if it has none.

        Raises:
          InputError: the bucket cannot be reached, so that the score is unknown.
        """
        if step in self._known:
            return self._known[step]
        try:
            path = self._directory / str(step) / "score" / "metadata"
            with access(path) if is_remote(path) else contextlib.nullcontext():
                score = json.loads(path.read_text())["score"]
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(score, float):
            return None
        self._known[step] = score
        return score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each checkpoint, oldest first, whether it is kept. Orbax calls this method."""
        if self._max_to_keep is None:
            return [True] * len(checkpoints)
        steps = [checkpoint.step for checkpoint in checkpoints]
        try:
            scored = {step: score for step in steps if (score := self.score_of(step)) is not None}
        except InputError:  # a step whose score is unknown may be the best
            return [True] * len(checkpoints)
        best = max(scored, key=lambda step: (scored[step], step), default=None)
        return [step == best or step in steps[-self._max_to_keep :] for step in steps]
