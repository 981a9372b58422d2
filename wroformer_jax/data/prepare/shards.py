"""Plans and writes the shards of a set: a unit is a group of consecutive songs of one split that become one shard.

Shards depend only on the songs and the storage, so that a set is the same whichever processes write it.
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
from wroformer_jax.data.prepare.find_stems import FoundSong
from wroformer_jax.data.record_writer import FORMAT, LOUDEST, Blocks, Storage, write_shard
from wroformer_jax.data.synthetic.song import synthesise_song
from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import AudioInfo, inspect, read_whole, resample_blocks
from wroformer_jax.io.buckets import as_place, is_remote, upload
from wroformer_jax.stems import SYNTHETIC_STEMS

# A shard is closed when it has this many seconds of stems, or 1/32 of its split if that is less: so that even a small
# split has work for every worker.
_UNIT_SECONDS = 20 * 60.0
_UNITS_PER_SPLIT = 32
_LEAST_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An audio file with its header, size and time of change."""

    path: Path
    info: AudioInfo
    size: int  # bytes
    modified: int  # nanoseconds since 1970

    @classmethod
    def inspect(cls, path: Path) -> SourceFile:
        """Reads the header; raises an InputError if that already shows that the file cannot be used."""
        info, status = inspect(path), path.stat()
        return cls(path, info, status.st_size, status.st_mtime_ns)

    @property
    def seconds(self) -> float:
        return self.info.samples / self.info.sample_rate


@dataclasses.dataclass(frozen=True)
class InspectedSong:
    """A song whose audio files have been inspected."""

    files: FoundSong
    stems: Mapping[str, SourceFile]

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def seconds(self) -> float:
        """Seconds of all stems together."""
        return sum(file.seconds for file in self.stems.values())

    def open(self, storage: Storage) -> dict[str, Iterator[Float32[np.ndarray, "channel _"]]]:
        """Returns the blocks of each stem, at the sample rate and with the channels of the storage."""
        return {stem: _blocks(file, storage) for stem, file in self.stems.items()}

    def notes(self, storage: Storage, stored: Mapping[str, Any]) -> list[str]:
        """Describes how the stored song differs from its files, as "KIND: ...".

        Args:
          storage: of the set.
          stored: the song's description, as `write_shard` returns it.
        """
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
        """Returns, as JSON types, everything that the stored stems depend on."""
        files = {stem: (os.fsencode(f.path).hex(), f.size, f.modified) for stem, f in self.stems.items()}
        return [self.name, self.files.notes, files]


@dataclasses.dataclass(frozen=True)
class SyntheticSong:
    """A song that `synthesise_song` makes; it has the methods of `InspectedSong`."""

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


SourceSong = InspectedSong | SyntheticSong


@dataclasses.dataclass(frozen=True)
class Unit:
    """The songs that become one shard."""

    split: str
    songs: tuple[SourceSong, ...]
    key: str  # a hash of everything that the shard depends on

    @property
    def seconds(self) -> float:
        return sum(song.seconds for song in self.songs)


@dataclasses.dataclass(frozen=True)
class Written:
    """The result of writing a unit."""

    part: Mapping[str, Any] | None  # the description that `write_shard` returned; None if nothing was stored
    bad: tuple[tuple[str, str], ...]  # (song, reason) for each file that could not be decoded


def plan(splits: Mapping[str, Sequence[SourceSong]], storage: Storage) -> list[Unit]:
    """Groups the songs of each split into units, in their order."""
    units = []
    for split, songs in splits.items():
        share = sum(song.seconds for song in songs) / _UNITS_PER_SPLIT
        enough = min(_UNIT_SECONDS, max(_LEAST_SECONDS, share))
        run: list[SourceSong] = []
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

    If a file cannot be decoded, its song is left out with `skip_bad`; without it, nothing is written.

    Args:
      unit: the songs to write.
      advance: called with the seconds of stems just stored; negative when stored stems have to be written again.
      storage: how the set keeps audio.
      folder: the staging folder, a local path or gs://.
      skip_bad: continue without songs that have a bad file.

    Raises:
      InputError: the disk is full or refuses.
    """
    if not is_remote(folder):
        return _write_local(unit, advance, storage, Path(folder), skip_bad)
    with tempfile.TemporaryDirectory() as temporary:
        written = _write_local(unit, advance, storage, Path(temporary), skip_bad)
        if written.part is not None:
            upload(Path(temporary, shard_file(unit.key)), as_place(folder) / shard_file(unit.key))
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
            # Decode the rest of the unit too, so that one run reports all of its bad files.
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
    """Returns the name of a unit's shard in the staging folder."""
    return f"{key}.array_record"


class _BadSong(Exception):
    """A file of a song cannot be decoded; the cause is the InputError."""

    def __init__(self, song: str) -> None:
        super().__init__(song)
        self.song = song


def _open(song: SourceSong, storage: Storage) -> dict[str, Blocks]:
    return {stem: _named(song.name, blocks) for stem, blocks in song.open(storage).items()}


def _named(song: str, blocks: Blocks) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Passes blocks on. Marks an error of the song, so that it differs from one of the disk that is written to."""
    try:
        yield from blocks
    except InputError as error:
        raise _BadSong(song) from error


def _errors(song: SourceSong, storage: Storage) -> Iterator[InputError]:
    """Decodes all files of a song and yields the error of each bad one."""
    for blocks in song.open(storage).values():
        try:
            for _ in blocks:
                pass
        except InputError as error:
            yield error


def _blocks(file: SourceFile, storage: Storage) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Yields the blocks of a file; mono is copied to all channels of the storage."""
    for block in resample_blocks(read_whole(file.path), file.info.sample_rate, storage.sample_rate):
        if not np.abs(block).max(initial=0.0) < LOUDEST:
            raise InputError(f"{file.path} has samples above {LOUDEST:g} times full scale: get a whole copy")
        yield np.broadcast_to(block, (storage.channels, block.shape[-1]))


def _unit(split: str, songs: Sequence[SourceSong], storage: Storage) -> Unit:
    content = [__version__, FORMAT, dataclasses.asdict(storage), split, [song.state() for song in songs]]
    return Unit(split, tuple(songs), hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24])
