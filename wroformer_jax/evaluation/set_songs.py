"""The test songs of a prepared set, as references for scoring."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from wroformer_jax.data.record_set import RecordSet, StoredSong, is_set
from wroformer_jax.data.record_writer import DATASET
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.songs import ReferenceSong, Shape
from wroformer_jax.io.buckets import is_remote

SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class SetSong(ReferenceSong):
    """A song that is stored in a prepared set."""

    record_set: RecordSet
    song: StoredSong

    @property
    def name(self) -> str:
        return self.song.name

    @property
    def location(self) -> str:
        return self.record_set.path

    @property
    def stored(self) -> Sequence[str]:
        return list(self.song.stems)

    @functools.cached_property
    def shape(self) -> Shape:
        return Shape(self.record_set.sample_rate, self.record_set.channels, self.song.samples, self.song.notes)

    def state(self) -> str:
        return self.record_set.fingerprint

    def blocks(self, stored: str) -> Iterator[Float32[np.ndarray, "channel _"]]:
        segment = self.record_set.segment_samples  # so that each segment is decoded once
        for start in range(0, self.song.samples, segment):
            yield self.record_set.read(self.song, stored, start, min(start + segment, self.song.samples))


def is_for_set(path: str) -> bool:
    """Whether a path can only name a prepared set: it is in a bucket, or holds a set or shards of an unfinished one."""
    return is_remote(path) or is_set(path) or any(Path(path).glob(f"{DATASET}-*.array_record-*"))


def find_set_songs(path: str | os.PathLike) -> list[SetSong]:
    """Returns the songs of a set's split "test" in alphabetical order.

    Args:
      path: of the set, local or in a bucket.

    Raises:
      InputError: there is no complete set, it has no split "test", or a song's name cannot be the name of a folder.
    """
    record_set = RecordSet.open(path)
    songs = sorted(record_set.songs(SPLIT), key=lambda song: song.name)
    for song in songs:
        # The set may come from a stranger, and --save-stems creates folders with these names.
        if "\0" in song.name or any(part in ("", ".", "..") for part in song.name.split("/")):
            raise InputError(f"{path} names a song {song.name!r}, which cannot be the name of a folder")
    return [SetSong(record_set, song) for song in songs]
