"""Scores on unseen songs while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.examples import whole_song
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.evaluation.validation_songs import (
    Estimates,
    OnSeparated,
    SongScores,
    ValidationSong,
    mean_scores,
    separate_and_score,
)
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.processes import gather, together
from wroformer_jax.workdir.excerpts import SONGS, Excerpt, excerpt_of
from wroformer_jax.workdir.log import TrainingLog

UNSEEN = ("validation", "test")  # the split to validate on: the first that a set has


class Validation:
    """The songs to validate on, which are read anew each time since whole songs are too large to keep.

    Args:
      config: the settings of the run.
      songs: the set.
      log: gets the scores; None in all processes but the first.
    """

    def __init__(self, config: TrainingConfig, songs: RecordSet, log: TrainingLog | None = None) -> None:
        split = next((split for split in UNSEEN if split in songs.splits), None)
        self._set, self._config, self._log = songs, config, log
        self._songs = songs.songs(split)[: config.validation.songs] if split else ()
        self.chunk_seconds = config.validation.chunk_seconds or None

    def __bool__(self) -> bool:
        """Whether the set has songs to validate on."""
        return bool(self._songs)

    def __iter__(self) -> Iterator[ValidationSong]:
        return self._read(range(len(self._songs)))

    def is_due(self, step: int) -> bool:
        """Whether to validate after this step."""
        return bool(self) and (step % self._config.validation.every == 0 or step == self._config.steps)

    def is_missing(self, step: int) -> bool:
        """Whether a validation is due after this step, and the log has none. All processes must call this."""
        if not self.is_due(step):
            return False
        [steps, *_] = gather([step for step, _ in self._log.curve("validation", "usdr")] if self._log else None)
        return step not in steps

    def run(self, step: int, params: Params, stop: Callable[[], bool] = lambda: False) -> float | None:
        """Scores the songs, writes the scores and excerpts of the first songs to the log, and returns the mean uSDR.

        Args:
          step: the number of steps that the parameters come from.
          params: parameters of the model, on a device of this process.
          stop: asked before each song whether to break off. If one process says so, all return None.

        Returns:
          The uSDR in dB, the mean over songs and stems; None if it was broken off.
        """
        excerpts: list[Excerpt] = []

        def keep(song: ValidationSong, estimates: Estimates) -> None:
            if len(excerpts) < SONGS:  # the first songs of the set are the first process's
                excerpts.append(excerpt_of(self._config.model, song, estimates))

        scores = self.score(params, on_separated=keep, stop=stop)
        if scores is None:
            return None
        if self._log:
            self._log.validation(step, scores, excerpts)
        return scores["usdr"]

    def score(
        self, params: Params, on_separated: OnSeparated | None = None, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Scores as `mean_scores` returns them; each process separates its share of the songs.

        Args:
          params: parameters of the model, on a device of this process.
          on_separated: called with each song of this process and its estimates.
          stop: asked before each song whether to break off. If one process says so, all return None.
        """
        mine = np.array_split(np.arange(len(self._songs)), jax.process_count())[jax.process_index()].tolist()
        parts = gather(together(lambda: self._score(params, mine, on_separated, stop)))
        if None in parts:
            return None
        return mean_scores(self._config.model.stems, [SongScores(*song) for part in parts for song in part])

    def _score(
        self, params: Params, numbers: Iterable[int], on_separated: OnSeparated | None, stop: Callable[[], bool]
    ) -> list[SongScores] | None:
        model, scores = RoFormer(self._config.model), []
        for song in self._read(numbers):
            if stop():
                return None
            scores.append(
                separate_and_score(model, params, song, chunk_seconds=self.chunk_seconds, on_separated=on_separated)
            )
        return scores

    def _read(self, numbers: Iterable[int]) -> Iterator[ValidationSong]:
        model = self._config.model
        for number in numbers:
            song = self._songs[number]
            yield ValidationSong(*whole_song(self._set, song, model.stems, model.channels, self._config.stems))
