"""Songs whose stems are known: what they are to those who score them, and songs that are folders of audio files.

A folder with audio files in it is a song, each file named after its stem: SONG/vocals.wav, SONG/drums.flac, and
SONG/mixture.wav if there is one. This is the layout of MUSDB18-HQ, whose test songs are found in its `test`.
Songs of prepared sets are in data/set_songs.py.
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
    """What all the audio of a song is brought to."""

    sample_rate: int  # Hz
    channels: int  # 1 or 2
    samples: int  # for each channel, of what is longest
    notes: tuple[str, ...]  # what had to be done for it, to be reported

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


class Song(abc.ABC):
    """A song and its stems, which are streams of seconds: blocks (channel, sample) of `sample_rate` samples each but
    for the last one, `shape.samples` in all.

    Reading them raises an InputError where something is missing or damaged.
    """

    name: str  # its place in the data, with / between the parts: "Artist - Title", "album/Title"
    place: str  # where it is stored, which errors about it name

    @property
    @abc.abstractmethod
    def stored(self) -> Sequence[str]:
        """The names of its stems, and "mixture" if it has one of its own."""

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """Raises an InputError if something that is stored cannot be used."""

    @abc.abstractmethod
    def state(self) -> str:
        """A short text that changes when what is stored of the song does."""

    @abc.abstractmethod
    def blocks(self, stored: str) -> Iterator[Float32[np.ndarray, "channel _"]]:
        """A stored stem as it is: blocks of any length, on one channel or on all."""

    @property
    def stems(self) -> list[str]:
        return [name for name in self.stored if name != MIXTURE]

    def has(self, stem: str) -> bool:
        """Whether the stem is there, by itself or as the sum of other stems."""
        return bool(self._parts(stem))

    def reference(self, stem: str) -> Iterator[Float32[np.ndarray, "channel _"]]:
        """A stem; silence if the song has none of that name.

        The instrumental is the sum of all stems but the vocals where it is not stored itself.
        """
        return self._sum(self._parts(stem))

    def mixture(self) -> Iterator[Float32[np.ndarray, "channel _"]]:
        """The song's own mixture, or else the sum of its stems."""
        return self._sum([MIXTURE] if MIXTURE in self.stored else self._parts(VOCALS) + self._parts(INSTRUMENTAL))

    def _parts(self, stem: str) -> list[str]:
        """The stored stems whose sum it is."""
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
    """Cuts a stream into seconds and gives it a song's shape: mono on all channels, the end padded or cut off."""
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
class FolderSong(Song):
    """A song and its files."""

    name: str
    folder: Path
    files: Mapping[str, Path]  # by stem, in lower case; "mixture" among them if there is one

    @property
    def place(self) -> str:
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
    """The songs in DATA/test if there is such a folder, else in DATA, in alphabetical order, at any depth.

    Names that begin with a dot are passed over, and links to folders are followed.

    Raises:
      InputError: there is no such folder, it cannot be read or holds no song, its folders are stems, a song has two
        files for a stem, or two songs have one name.
    """
    data = Path(data)
    if not os.path.isdir(data):
        raise InputError(f"{data} is not a folder: expected one with a folder of stems for each song")
    root = data / "test" if os.path.isdir(data / "test") else data
    songs = []
    for place, paths in itertools.groupby(audio_files(root), key=lambda path: path.parent):
        files = by_stem([root / path for path in paths])
        name = place.as_posix() if place.parts else root.resolve().name
        songs.append(FolderSong(unicodedata.normalize("NFC", name), root / place, files))
    songs = [song for song in songs if song.stems]
    if len(songs) > 1 and all(_looks_like_a_stem(song) for song in songs):
        raise InputError(
            f"{root} has a folder for each stem ({', '.join(song.folder.name for song in songs[:3])} ...), not for "
            "each song: bring them into the form SONG/vocals.wav"
        )
    folders: dict[str, Path] = {}
    for song in songs:
        if (other := folders.setdefault(song.name, song.folder)) is not song.folder:
            raise InputError(f"{other} and {song.folder} are one name in two forms of Unicode: rename one of them")
    if not songs:
        raise InputError(
            f"no songs in {root}: expected a folder for each, with a file for each stem "
            f"(vocals.wav, drums.wav ...; {', '.join(AUDIO_SUFFIXES)})"
        )
    return songs


def _looks_like_a_stem(song: FolderSong) -> bool:
    """Whether it is the folder that is named as stems are, and no file in it."""
    return song.folder.name.lower() in STEM_NAMES and not STEM_NAMES.intersection(song.stems)
