"""The work of preparing a set, in units: a unit is a run of songs of one split that become one shard.

Everything here is a pure function of the songs and the storage, so that a set is the same whoever writes its shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax import __version__
from wroformer_jax.data.prepare.find_stems import SongFiles
from wroformer_jax.data.record_writer import FORMAT, LOUDEST, Blocks, Storage, write_shard
from wroformer_jax.data.synthetic.song import synthesise_song
from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import AudioInfo, inspect, read_whole, resample_blocks
from wroformer_jax.io.buckets import is_remote, upload
from wroformer_jax.stems import SYNTHETIC_STEMS

# A shard holds at least so many seconds of stems, or its share of a split that is small: every worker finds work.
_UNIT_SECONDS = 20 * 60.0
_UNITS_OF_A_SPLIT = 32
_LEAST_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An audio file, what its header says, and when it was written."""

    path: Path
    info: AudioInfo
    size: int  # bytes
    modified: int  # nanoseconds since 1970

    @classmethod
    def inspect(cls, path: Path) -> SourceFile:
        """Raises an InputError if the file cannot be used, as far as can be told without decoding it."""
        info, status = inspect(path), path.stat()
        return cls(path, info, status.st_size, status.st_mtime_ns)

    @property
    def seconds(self) -> float:
        return self.info.samples / self.info.sample_rate


@dataclasses.dataclass(frozen=True)
class FileSong:
    """A song of audio files."""

    files: SongFiles
    stems: Mapping[str, SourceFile]

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def seconds(self) -> float:
        """Of all its stems together."""
        return sum(file.seconds for file in self.stems.values())

    def open(self, storage: Storage) -> dict[str, Iterator[Float32[np.ndarray, "channel _"]]]:
        """Its stems, at the rate and with the channels of the storage."""
        return {stem: _blocks(file, storage) for stem, file in self.stems.items()}

    def notes(self, storage: Storage, stored: Mapping[str, Any]) -> list[str]:
        """What was done to it to store it, given what `write_shard` says of it; the kind stands before a colon."""
        lengths = {stem: entry["samples"] for stem, entry in stored["stems"].items()}
        short = {stem: stored["samples"] - samples for stem, samples in lengths.items() if samples < stored["samples"]}
        rates = {stem: file.info.sample_rate for stem, file in self.stems.items()}
        resampled = [f"{stem} from {rate} Hz" for stem, rate in rates.items() if rate != storage.sample_rate]
        return [
            *self.files.notes,
            *([f"resampled: {', '.join(resampled)}"] if resampled else []),
            *([f"padded: {', '.join(f'{stem} by {n} samples' for stem, n in short.items())}"] if short else []),
        ]

    def state(self) -> Any:
        """What its stored stems depend on, JSON-able."""
        files = {stem: (os.fsencode(f.path).hex(), f.size, f.modified) for stem, f in self.stems.items()}
        return [self.name, self.files.notes, files]


@dataclasses.dataclass(frozen=True)
class SyntheticSong:
    """A song of data/synthetic.py; its methods are those of `FileSong`."""

    name: str
    seed: tuple[int, ...]
    length: float  # seconds

    @property
    def seconds(self) -> float:
        return self.length * len(SYNTHETIC_STEMS)

    def open(self, storage: Storage) -> dict[str, list[Float32[np.ndarray, "channel _"]]]:
        stems = synthesise_song(self.seed, self.length, storage.sample_rate)
        return {stem: [stems[stem]] for stem in sorted(stems)}

    def notes(self, storage: Storage, stored: Mapping[str, Any]) -> list[str]:
        return []

    def state(self) -> Any:
        return [self.name, self.seed, self.length]


Song = FileSong | SyntheticSong


@dataclasses.dataclass(frozen=True)
class Unit:
    """The songs of a shard."""

    split: str
    songs: tuple[Song, ...]
    key: str  # changes with everything that the shard depends on

    @property
    def seconds(self) -> float:
        return sum(song.seconds for song in self.songs)


@dataclasses.dataclass(frozen=True)
class Written:
    """What came of a unit."""

    part: Mapping[str, Any] | None  # of `write_shard`; None if nothing was stored
    bad: tuple[tuple[str, str], ...]  # song and reason of each file that could not be decoded


def plan(splits: Mapping[str, Sequence[Song]], storage: Storage) -> list[Unit]:
    """The units of all splits, in their order."""
    units = []
    for split, songs in splits.items():
        share = sum(song.seconds for song in songs) / _UNITS_OF_A_SPLIT
        enough = min(_UNIT_SECONDS, max(_LEAST_SECONDS, share))
        run: list[Song] = []
        seconds = 0.0
        for song in songs:
            run.append(song)
            seconds += song.seconds
            if seconds >= enough or song is songs[-1]:
                units.append(_unit(split, run, storage))
                run, seconds = [], 0.0
    return units


def write_unit(
    unit: Unit, advance: Callable[[float], object], *, storage: Storage, folder: str, skip_bad: bool
) -> Written:
    """Writes the shard of a unit as FOLDER/KEY.array_record.

    A song with a file that cannot be decoded is left out with `skip_bad`; else nothing is written.

    Args:
      unit: what to write.
      advance: told the seconds of stems as they are stored; less than none if they are to be stored again.
      storage: how.
      folder: where shards wait for their set, local or gs://.
      skip_bad: whether to go on without bad songs.

    Raises:
      InputError: the disk is full or refuses.
    """
    if not is_remote(folder):
        return _write_local(unit, advance, storage, Path(folder), skip_bad)
    from etils import epath

    with tempfile.TemporaryDirectory() as temporary:
        written = _write_local(unit, advance, storage, Path(temporary), skip_bad)
        if written.part is not None:
            upload(Path(temporary, shard_file(unit.key)), epath.Path(folder) / shard_file(unit.key))
    return written


def _write_local(
    unit: Unit, advance: Callable[[float], object], storage: Storage, folder: Path, skip_bad: bool
) -> Written:
    songs, bad = list(unit.songs), []
    while songs:
        stored: list[float] = []

        def count(samples: int, stored: list[float] = stored) -> None:
            stored.append(samples / storage.sample_rate)
            advance(stored[-1])

        try:
            opened = ((song.name, _open(song, storage)) for song in songs)
            part = write_shard(folder / shard_file(unit.key), opened, storage, count)
        except _BadSong as error:
            # All bad files of the unit are found at once, not one each time.
            rest = songs[[song.name for song in songs].index(error.song) :]
            found = [(song.name, str(reason)) for song in rest for reason in _errors(song, storage)]
            bad += found or [(error.song, str(error.__cause__))]
            if not skip_bad:
                break
            advance(-sum(stored))
            songs = [song for song in songs if song.name not in {name for name, _ in bad}]
        else:
            for song, described in zip(songs, part["songs"], strict=True):
                described["notes"] = song.notes(storage, described)
            return Written(part, tuple(bad))
    return Written(None, tuple(bad))


def shard_file(key: str) -> str:
    """The name of a unit's shard before it has one in the set."""
    return f"{key}.array_record"


class _BadSong(Exception):
    """A song's file cannot be decoded; the InputError is the cause."""

    def __init__(self, song: str) -> None:
        super().__init__(song)
        self.song = song


def _open(song: Song, storage: Storage) -> dict[str, Blocks]:
    return {stem: _named(song.name, blocks) for stem, blocks in song.open(storage).items()}


def _named(song: str, blocks: Blocks) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Tells an error of a song from one of the disk that is written to."""
    try:
        yield from blocks
    except InputError as error:
        raise _BadSong(song) from error


def _errors(song: Song, storage: Storage) -> Iterator[InputError]:
    """What is wrong with each file of a song, found by decoding all of it."""
    for blocks in song.open(storage).values():
        try:
            for _ in blocks:
                pass
        except InputError as error:
            yield error


def _blocks(file: SourceFile, storage: Storage) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """The blocks of a file, mono on all channels of the storage."""
    for block in resample_blocks(read_whole(file.path), file.info.sample_rate, storage.sample_rate):
        if not np.abs(block).max(initial=0.0) < LOUDEST:
            raise InputError(f"{file.path} has samples above {LOUDEST:g} times full scale: get a whole copy")
        yield np.broadcast_to(block, (storage.channels, block.shape[-1]))


def _unit(split: str, songs: Sequence[Song], storage: Storage) -> Unit:
    content = [__version__, FORMAT, dataclasses.asdict(storage), split, [song.state() for song in songs]]
    return Unit(split, tuple(songs), hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24])
