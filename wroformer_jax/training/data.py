"""The songs of a run: a prepared set, or one that is synthesised in its workdir."""

from __future__ import annotations

import functools

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Loading
from wroformer_jax.data.prepare.write import prepare_synthetic
from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place
from wroformer_jax.parallel.processes import in_first, together

TRAIN = "train"

_SYNTHETIC = "songs"  # folder in the workdir of a run without `config.data`


def open_songs(config: TrainingConfig) -> RecordSet:
    """Opens the set of songs that `config.data` names.

    Raises:
      InputError: the set cannot be read, or its sample rate is not the model's.
    """
    try:
        songs = RecordSet.open(config.data)
    except InputError as error:
        raise InputError(f"data: {error}") from error
    if songs.sample_rate != config.model.sample_rate:
        raise InputError(
            f"{config.data} has {songs.sample_rate} Hz and the model {config.model.sample_rate}: prepare the songs "
            f"with --sample-rate {config.model.sample_rate}"
        )
    return songs


def synthesised_songs(config: TrainingConfig, workdir: Place) -> RecordSet:
    """Opens the set of synthetic songs in the workdir, which the first process synthesises if it does not exist yet."""
    path = workdir / _SYNTHETIC
    in_first(lambda: _synthesise(config, path))
    return together(lambda: RecordSet.open(path))


def _synthesise(config: TrainingConfig, path: Place) -> None:
    if is_set(path):
        return
    print(f"synthesising {config.synthetic.train_songs + config.validation.songs} songs", flush=True)
    prepare_synthetic(
        path,
        train_songs=config.synthetic.train_songs,
        test_songs=config.validation.songs,
        seconds=config.synthetic.song_seconds,
        sample_rate=config.model.sample_rate,
        seed=config.seed,
        say=functools.partial(print, flush=True),
    )


def loading_of(config: TrainingConfig) -> Loading:
    """Returns the settings with which the batches of a run are loaded."""
    return Loading(
        crop_samples=config.crop_samples,
        batch_size=config.batch_size,
        targets=config.model.stems,
        stems=config.stems,
        channels=config.model.channels,
        seed=config.seed,
        workers=config.loading.workers,
        prefetch=config.loading.prefetch,
        augmentation=config.augment,
    )
