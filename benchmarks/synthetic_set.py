"""Writes sets of synthetic songs, in any encoding, for the benchmarks of loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.data.record_writer import Storage, finish_set, shard_name, write_shard
from wroformer_jax.data.synthetic.song import synthesise_song

Song = Mapping[str, np.ndarray]


def synthesise(number: int, seconds: float) -> list[Song]:
    """Returns stereo songs of 4 stems at 44,100 Hz; samples are exact 16-bit values, as on a CD."""
    songs = (synthesise_song((0, index), seconds) for index in range(number))
    return [{name: np.rint(stem * 32768) / np.float32(32768) for name, stem in song.items()} for song in songs]


def write_set(path: Path, songs: Sequence[Song], encoding: str = "lossless") -> RecordSet:
    """Writes the songs as the training split of a set of one shard."""
    path.mkdir(parents=True)
    storage = Storage(encoding=encoding)
    shard = shard_name("train", 0, 1)
    content = ((f"song {n}", {name: [stem] for name, stem in song.items()}) for n, song in enumerate(songs))
    finish_set(path, storage, {"train": [(shard, write_shard(path / shard, content, storage))]})
    return RecordSet.open(path)
