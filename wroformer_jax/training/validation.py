"""Scores on unseen songs while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.examples import whole_song
from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.evaluation.validation_songs import (
    OnSeparated,
    SongScores,
    ValidationSong,
    mean_scores,
    separate_and_score,
)
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.processes import gather, together

UNSEEN = ("validation", "test")  # the split to validate on: the first that a set has


class Validation:
    """The songs that are validated on, read anew each time: whole songs are too much to keep."""

    def __init__(self, config: TrainingConfig, songs: RecordSet) -> None:
        split = next((split for split in UNSEEN if split in songs.splits), None)
        self._set, self._config = songs, config
        self._songs = songs.songs(split)[: config.validation.songs] if split else ()
        self.chunk_seconds = config.validation.chunk_seconds or None

    def __bool__(self) -> bool:
        return bool(self._songs)

    def __iter__(self) -> Iterator[ValidationSong]:
        return self._read(range(len(self._songs)))

    def score(
        self, params: Params, heard: OnSeparated | None = None, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """As `evaluate.mean_scores`, on these songs; each process separates its share of them.

        Args:
          params: on a device of this process.
          heard: is given each song of this process and the model's stems of it.
          stop: asked before each song. Where one process says so, there are no scores: None in all.
        """
        mine = np.array_split(np.arange(len(self._songs)), jax.process_count())[jax.process_index()].tolist()
        parts = gather(together(lambda: self._score(params, mine, heard, stop)))
        if None in parts:
            return None
        return mean_scores(self._config.model.stems, [SongScores(*song) for part in parts for song in part])

    def _score(
        self, params: Params, numbers: Iterable[int], heard: OnSeparated | None, stop: Callable[[], bool]
    ) -> list[SongScores] | None:
        model, scores = RoFormer(self._config.model), []
        for song in self._read(numbers):
            if stop():
                return None
            scores.append(separate_and_score(model, params, song, chunk_seconds=self.chunk_seconds, on_separated=heard))
        return scores

    def _read(self, numbers: Iterable[int]) -> Iterator[ValidationSong]:
        model = self._config.model
        for number in numbers:
            song = self._songs[number]
            yield ValidationSong(*whole_song(self._set, song, model.stems, model.channels, self._config.stems))
