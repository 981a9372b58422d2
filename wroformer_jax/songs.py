"""Songs to evaluate on: folders that hold a file for each stem, and how they are read.

A song is a folder with audio files in it, each named after its stem: SONG/vocals.wav, SONG/drums.flac, and
SONG/mixture.wav if there is one. This is the layout of MUSDB18-HQ, whose test songs are found in its `test`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from wroformer_jax.audio import AUDIO_SUFFIXES, BLOCK_SAMPLES, AudioInfo, inspect, read_blocks
from wroformer_jax.errors import InputError

MIXTURE = "mixture"
VOCALS = "vocals"
INSTRUMENTAL = "instrumental"  # all but the vocals
_SUMS = (INSTRUMENTAL, "accompaniment")  # names of files that are the sum of other stems


@dataclasses.dataclass(frozen=True)
class Song:
    """A song and its files."""

    name: str  # its folder's place in the data, with / between the parts: "Artist - Title", "album/Title"
    folder: Path
    stems: Mapping[str, Path]
    mixture: Path | None

    @property
    def files(self) -> list[Path]:
        return [*self.stems.values(), *([self.mixture] if self.mixture else [])]

    def has(self, stem: str) -> bool:
        """Whether the stem is there, as a file or as the sum of the files of other stems."""
        return bool(self.parts_of(stem))

    def parts_of(self, stem: str) -> list[Path]:
        """The files whose sum is the stem; none for a stem that is not there, which is silence.

        The instrumental is the sum of all stems but the vocals where it has no file of its own.
        """
        if stem.lower() in self.stems:
            return [self.stems[stem.lower()]]
        if stem.lower() == INSTRUMENTAL:
            return self._instrumental
        return []

    @property
    def mixture_parts(self) -> list[Path]:
        """The files whose sum is the mixture: its own, or else the stems'."""
        if self.mixture:
            return [self.mixture]
        return self.parts_of(VOCALS) + self._instrumental

    @property
    def _instrumental(self) -> list[Path]:
        for name in _SUMS:
            if name in self.stems:
                return [self.stems[name]]
        return [path for name, path in self.stems.items() if name != VOCALS]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all the audio of a song is brought to."""

    sample_rate: int  # Hz
    channels: int  # 1 or 2
    samples: int  # for each channel, of its longest file
    notes: tuple[str, ...]  # what had to be done for it, to be reported

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def find_songs(data: str | os.PathLike) -> list[Song]:
    """The songs in DATA/test if there is such a folder, else in DATA, in alphabetical order, at any depth.

    Names that begin with a dot are passed over.

    Raises:
      InputError: there is no such folder, it cannot be read or holds no song, or a song has two files for a stem.
    """
    data = Path(data)
    if not os.path.isdir(data):
        raise InputError(f"{data} is not a folder: expected one with a folder of stems for each song")
    root = data / "test" if os.path.isdir(data / "test") else data
    songs = []
    for folder, folders, files in os.walk(root, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found = [Path(folder, name) for name in sorted(files) if name[0] != "."]
        if stems := _by_stem([path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]):
            place = Path(folder).relative_to(root).as_posix()
            name = Path(folder).resolve().name if place == "." else place
            songs.append(Song(name, Path(folder), stems, stems.pop(MIXTURE, None)))
    songs = [song for song in songs if song.stems]
    if not songs:
        raise InputError(
            f"no songs in {root}: expected a folder for each, with a file for each stem "
            f"(vocals.wav, drums.wav ...; {', '.join(AUDIO_SUFFIXES)})"
        )
    return songs


def find_estimates(estimates: str | os.PathLike, song: Song) -> dict[str, Path]:
    """The files of ESTIMATES/SONG, or else ESTIMATES/test/SONG, by their stems.

    Raises:
      InputError: there is no such folder, or it has two files for a stem.
    """
    for folder in (Path(estimates, song.name), Path(estimates, "test", song.name)):
        if os.path.isdir(folder):
            files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
            return _by_stem([path for path in files if path.suffix.lower() in AUDIO_SUFFIXES])
    raise InputError(f"{Path(estimates, song.name)} is missing: expected the estimates of this song, a file a stem")


def shape_of(song: Song) -> Shape:
    """Inspects the files of a song.

    Raises:
      InputError: a file cannot be used, or the sample rates differ.
    """
    infos = {path: inspect(path) for path in song.files}
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


def read_stem(song: Song, stem: str, shape: Shape) -> Float32[np.ndarray, "channel sample"]:
    """The whole reference of a stem; zeros if the song has no such stem.

    Raises:
      InputError: a file cannot be decoded to its end.
    """
    return read_sum(song.parts_of(stem), shape)


def read_sum(paths: list[Path], shape: Shape) -> Float32[np.ndarray, "channel sample"]:
    """The sum of whole files, each brought to `shape`: mono on both channels, padded or cut at the end.

    Raises:
      InputError: a file cannot be decoded to its end.
    """
    total = np.zeros((shape.channels, shape.samples), np.float32)
    for path in paths:
        done = 0
        for block in _checked_blocks(path):
            place = total[:, done : done + block.shape[-1]]
            place += block[:, : place.shape[-1]]
            done += block.shape[-1]
    return total


def mixture_blocks(song: Song, shape: Shape) -> Iterator[Float32[np.ndarray, "channel block"]]:
    """The mixture as a stream of blocks, `shape.samples` in all.

    Raises:
      InputError: a file cannot be decoded to its end.
    """
    streams = [_regular(_checked_blocks(path), shape.channels) for path in song.mixture_parts]
    done = 0
    for blocks in itertools.zip_longest(*streams):
        heard = [block for block in blocks if block is not None]
        longest = max(block.shape[-1] for block in heard)
        total = np.zeros((shape.channels, min(longest, shape.samples - done)), np.float32)
        for block in heard:
            place = total[:, : block.shape[-1]]
            place += block[:, : place.shape[-1]]
        done += total.shape[-1]
        if total.shape[-1]:
            yield total
    for start in range(done, shape.samples, BLOCK_SAMPLES):
        yield np.zeros((shape.channels, min(BLOCK_SAMPLES, shape.samples - start)), np.float32)


def check_estimate(path: Path, shape: Shape) -> str | None:
    """Holds an estimate's header against its song.

    Returns:
      What has to be done to its length, to be reported, or None.

    Raises:
      InputError: it cannot be used, or has another sample rate or more channels than the song.
    """
    info: AudioInfo = inspect(path)
    if info.sample_rate != shape.sample_rate:
        raise InputError(f"{path} has {info.sample_rate} Hz and its song {shape.sample_rate} Hz: they must be equal")
    if info.channels > shape.channels:
        raise InputError(f"{path} has {info.channels} channels and its song {shape.channels}: mix it down first")
    missing = shape.samples - info.samples
    if missing == 0:
        return None
    what = f"padded by {missing} samples" if missing > 0 else f"cut by {-missing} samples"
    return f"the estimate {path.name} {what} at the end"


def files_state(paths: list[Path]) -> str:
    """A short text that changes when one of the files is replaced or written to."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()[:16]


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(path.stem.lower(), path)
        if other != path:
            raise InputError(f"{other} and {path.name} are both the stem {path.stem.lower()}: keep one of them")
    return stems


def _checked_blocks(path: Path) -> Iterator[Float32[np.ndarray, "channel block"]]:
    """The blocks of a file, which must be as many samples as its header says."""
    expected, done = inspect(path), 0
    for block in read_blocks(path):
        done += block.shape[-1]
        yield block
    # The header of an mp3 may give an estimate.
    if done < expected.samples and path.suffix.lower() != ".mp3":
        raise InputError(f"{path} is damaged: it ends after {done} of its {expected.samples} samples; get a whole copy")


def _regular(
    blocks: Iterator[Float32[np.ndarray, "channel _"]], channels: int
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Blocks of BLOCK_SAMPLES each but for the last one, mono on all `channels`."""
    waiting = np.zeros((channels, 0), np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, np.broadcast_to(block, (channels, block.shape[-1]))], axis=-1)
        while waiting.shape[-1] >= BLOCK_SAMPLES:
            yield waiting[:, :BLOCK_SAMPLES]
            waiting = waiting[:, BLOCK_SAMPLES:]
    if waiting.shape[-1]:
        yield waiting


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
