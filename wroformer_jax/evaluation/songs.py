"""Songs with known stems, as references for scoring, and the songs that are folders of audio files.

A folder that holds audio files is a song, and each file is named after its stem: SONG/vocals.wav, SONG/drums.flac, and
optionally SONG/mixture.wav. This is the layout of MUSDB18-HQ, whose test songs lie in its folder `test`. For songs of
prepared sets see set_songs.py.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import operator
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import AUDIO_SUFFIXES, inspect, read_whole
from wroformer_jax.io.folders import audio_files, by_stem, files_state
from wroformer_jax.stems import INSTRUMENTAL, MIXTURE, STEM_NAMES, SUMS, VOCALS


@dataclasses.dataclass(frozen=True)
class Shape:
    """The common shape to which all stems of a song are brought."""

    sample_rate: int  # Hz
    channels: int  # 1 or 2, the most that a file has
    samples: int  # per channel, of the longest file
    notes: tuple[str, ...]  # how stems had to be changed, for the report

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


class ReferenceSong(abc.ABC):
    """A song with known stems, which are read as streams of seconds.

    A stream yields arrays (channel, sample) of `sample_rate` samples, of which the last one may be shorter; together
    they have `shape.samples` samples. Reading raises an InputError if a file is missing or damaged.
    """

    name: str  # its path below the data folder: "Artist - Title", "album/Title"
    location: str  # where it is stored; errors about the song contain this text

    @property
    @abc.abstractmethod
    def stored(self) -> Sequence[str]:
        """The names of the stored stems, and "mixture" if a mixture is stored."""

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """The common shape of the stems.

        Raises:
          InputError: the stored audio cannot be used.
        """

    @abc.abstractmethod
    def state(self) -> str:
        """Returns a short text that changes whenever the stored audio changes."""

    @abc.abstractmethod
    def blocks(self, stored: str) -> Iterator[Float32[np.ndarray, "channel _"]]:
        """Yields a stored stem unchanged: arrays of any length, with one channel or with all."""

    @property
    def stems(self) -> list[str]:
        """The names of the stored stems."""
        return [name for name in self.stored if name != MIXTURE]

    def has(self, stem: str) -> bool:
        """Whether the stem is stored, or is a sum of stored stems."""
        return bool(self._parts(stem))

    def reference(self, stem: str) -> Iterator[Float32[np.ndarray, "channel _"]]:
        """Yields a stem second by second; silence if the song has no such stem.

        An instrumental that is not stored is the sum of all stems but the vocals.
        """
        return self._sum(self._parts(stem))

    def mixture(self) -> Iterator[Float32[np.ndarray, "channel _"]]:
        """Yields the stored mixture second by second, or else the sum of the stems."""
        return self._sum([MIXTURE] if MIXTURE in self.stored else self._parts(VOCALS) + self._parts(INSTRUMENTAL))

    def _parts(self, stem: str) -> list[str]:
        """Returns the names of the stored stems whose sum is this stem."""
        of_name = [name for name in self.stems if name.lower() == stem.lower()]
        if of_name or stem.lower() != INSTRUMENTAL:
            return of_name
        sums = [name for name in self.stems if name.lower() in SUMS]
        return sums[:1] or [name for name in self.stems if name.lower() != VOCALS]

    def _sum(self, parts: list[str]) -> Iterator[Float32[np.ndarray, "channel _"]]:
        streams = [in_seconds(self.blocks(part), self.shape) for part in parts] or [in_seconds((), self.shape)]
        for together in zip(*streams, strict=True):
            yield functools.reduce(operator.add, together)


def in_seconds(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], shape: Shape
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Recuts a stream into seconds of a song's shape.

    Mono is copied to all channels; the end is padded with silence or cut off.
    """
    silence = np.zeros((shape.channels, shape.sample_rate), np.float32)
    blocks = itertools.chain(blocks, itertools.repeat(silence))
    waiting = silence[:, :0]
    for start in range(0, shape.samples, shape.sample_rate):
        samples = min(shape.sample_rate, shape.samples - start)
        while waiting.shape[-1] < samples:
            block = next(blocks)
            waiting = np.concatenate([waiting, np.broadcast_to(block, (shape.channels, block.shape[-1]))], axis=-1)
        yield waiting[:, :samples]
        waiting = waiting[:, samples:]


@dataclasses.dataclass(frozen=True)
class FolderSong(ReferenceSong):
    """A song whose stems are audio files in one folder."""

    name: str
    folder: Path
    files: Mapping[str, Path]  # by the stem's name in lower case; may include "mixture"

    @property
    def location(self) -> str:
        return os.fspath(self.folder)

    @property
    def stored(self) -> Sequence[str]:
        return list(self.files)

    @functools.cached_property
    def shape(self) -> Shape:
        infos = {path: inspect(path) for path in self.files.values()}
        first, info = next(iter(infos.items()))
        for path, other in infos.items():
            if other.sample_rate != info.sample_rate:
                raise InputError(
                    f"{path} has {other.sample_rate} Hz and {first.name} {info.sample_rate} Hz: "
                    "bring all the files of a song to one rate"
                )
        samples = max(info.samples for info in infos.values())
        short = [f"{path.name} {samples - info.samples}" for path, info in infos.items() if info.samples < samples]
        notes = (f"padded with silence at the end (samples): {', '.join(short)}",) if short else ()
        return Shape(info.sample_rate, max(info.channels for info in infos.values()), samples, notes)

    def state(self) -> str:
        return files_state(self.files.values())

    def blocks(self, stored: str) -> Iterator[Float32[np.ndarray, "channel _"]]:
        return read_whole(self.files[stored])


def find_songs(data: str | os.PathLike) -> list[FolderSong]:
    """Finds the songs in DATA/test if that folder exists, else in DATA, at any depth, in alphabetical order.

    Names that begin with a dot are skipped; links to folders are followed.

    Raises:
      InputError: the folder does not exist, cannot be read or holds no song; its folders are stems, not songs; a song
        has two files for one stem; or two songs have the same name.
    """
    data = Path(data)
    if not os.path.isdir(data):
        raise InputError(f"{data} is not a folder: expected a folder that has a folder of stems for each song")
    root = data / "test" if os.path.isdir(data / "test") else data
    songs = []
    for folder, paths in itertools.groupby(audio_files(root), key=lambda path: path.parent):
        files = by_stem([root / path for path in paths])
        name = folder.as_posix() if folder.parts else root.resolve().name
        songs.append(FolderSong(unicodedata.normalize("NFC", name), root / folder, files))
    songs = [song for song in songs if song.stems]
    if len(songs) > 1 and all(_looks_like_a_stem(song) for song in songs):
        raise InputError(
            f"{root} has a folder for each stem ({', '.join(song.folder.name for song in songs[:3])} ...), not for "
            "each song: bring them into the form SONG/vocals.wav"
        )
    folders: dict[str, Path] = {}
    for song in songs:
        if (other := folders.setdefault(song.name, song.folder)) is not song.folder:
            raise InputError(f"{other} and {song.folder} are the same name in two forms of Unicode: rename one of them")
    if not songs:
        raise InputError(
            f"no songs in {root}: expected a folder for each, with a file for each stem "
            f"(vocals.wav, drums.wav ...; {', '.join(AUDIO_SUFFIXES)})"
        )
    return songs


def _looks_like_a_stem(song: FolderSong) -> bool:
    """Whether the folder is named after a stem and none of its files is."""
    return song.folder.name.lower() in STEM_NAMES and not STEM_NAMES.intersection(song.stems)
