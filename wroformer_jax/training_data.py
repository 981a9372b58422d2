"""The songs of a run: a prepared set, or one that is synthesised in its workdir."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.examples import whole_song
from wroformer_jax.data.loading import Loading
from wroformer_jax.data.prepare.write import prepare_synthetic
from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.whole_songs import Heard, SongScores, WholeSong, mean_scores, score_song
from wroformer_jax.io.buckets import Place
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.processes import gather, in_first, together

TRAIN = "train"
UNSEEN = ("validation", "test")  # the split to validate on: the first that a set has

# Where the songs of a run without a data set are kept, in its workdir.
_SYNTHETIC = "songs"


def open_songs(config: TrainingConfig) -> RecordSet:
    """The set of songs to train on.

    Raises:
      InputError: it cannot be used, or does not go with the model.
    """
    songs = RecordSet.open(config.data)
    if songs.sample_rate != config.model.sample_rate:
        raise InputError(
            f"{config.data} has {songs.sample_rate} Hz and the model {config.model.sample_rate}: prepare the songs "
            f"with --sample-rate {config.model.sample_rate}"
        )
    return songs


def synthesised_songs(config: TrainingConfig, workdir: Place) -> RecordSet:
    """The set in the workdir, local or in a bucket, synthesised by the first process if it is not there yet."""
    path = workdir / _SYNTHETIC
    in_first(lambda: _synthesise(config, path))
    return together(lambda: RecordSet.open(path))


def _synthesise(config: TrainingConfig, path: Place) -> None:
    if is_set(path):
        return
    print(f"synthesising {config.train_songs + config.validation_songs} songs", flush=True)
    prepare_synthetic(
        path,
        train_songs=config.train_songs,
        test_songs=config.validation_songs,
        seconds=config.song_seconds,
        sample_rate=config.model.sample_rate,
        seed=config.seed,
        say=functools.partial(print, flush=True),
    )


def loading_of(config: TrainingConfig) -> Loading:
    """How the batches of a run are made."""
    return Loading(
        crop_samples=config.crop_samples,
        batch_size=config.batch_size,
        targets=config.model.stems,
        stems=config.stems,
        channels=config.model.channels,
        seed=config.seed,
        workers=config.workers,
        prefetch=config.prefetch,
        augmentation=config.augment,
    )


class Validation:
    """The songs that are validated on, read anew each time: whole songs are too much to keep."""

    def __init__(self, config: TrainingConfig, songs: RecordSet) -> None:
        split = next((split for split in UNSEEN if split in songs.splits), None)
        self._set, self._config = songs, config
        self._songs = songs.songs(split)[: config.validation_songs] if split else ()
        self.chunk_seconds = config.validation_chunk_seconds or None

    def __bool__(self) -> bool:
        return bool(self._songs)

    def __iter__(self) -> Iterator[WholeSong]:
        return self._read(range(len(self._songs)))

    def score(
        self, params: Params, heard: Heard | None = None, stop: Callable[[], bool] = lambda: False
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
        self, params: Params, numbers: Iterable[int], heard: Heard | None, stop: Callable[[], bool]
    ) -> list[SongScores] | None:
        model, scores = RoFormer(self._config.model), []
        for song in self._read(numbers):
            if stop():
                return None
            scores.append(score_song(model, params, song, chunk_seconds=self.chunk_seconds, heard=heard))
        return scores

    def _read(self, numbers: Iterable[int]) -> Iterator[WholeSong]:
        model = self._config.model
        for number in numbers:
            song = self._songs[number]
            yield WholeSong(*whole_song(self._set, song, model.stems, model.channels, self._config.stems))
