"""Reads and resamples audio in blocks, so that no recording is ever held whole.

A block is a buffer of consecutive samples: a float32 array (channels, samples), full scale 1. Files are checked when
they are opened (`inspect`) and while they are read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio_headers import is_mp3_of_unknown_length, promised_bytes

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")  # the files that are looked for in a folder
BLOCK_SAMPLES = 1 << 16

_READABLE = "expected a whole wav, flac, ogg, mp3 or aiff file"
_CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")  # as libsndfile names them
_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's number of samples of a FLAC file that does not say


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """The properties of an audio file, as its header gives them."""

    sample_rate: int  # Hz
    channels: int  # 1 or 2
    samples: int  # for each channel; an estimate for an mp3 without an index


def inspect(path: str | os.PathLike[str]) -> AudioInfo:
    """Reads the header of an audio file and checks everything that can be checked without decoding the file.

    Raises:
      InputError: the file is missing, unreadable, empty, not audio, truncated, or has no samples or more
        than two channels.
    """
    path = Path(path)
    size = _checked_size(path)
    with _open(path) as file:
        if file.format not in _CONTAINERS:
            raise InputError(f"{path} is a {file.format} file: {_READABLE}")
        if (promised := promised_bytes(path)) > size:
            raise InputError(
                f"{path} is truncated: its header promises at least {promised:,} bytes, but the file has {size:,}; "
                "get a whole copy"
            )
        if file.channels > 2:
            raise InputError(f"{path} has {file.channels} channels: mix it down to 1 or 2 first")
        if file.frames == 0:
            raise InputError(f"{path} has no samples, so it holds nothing to separate")
        if file.frames == _UNKNOWN_LENGTH or (file.format == "MP3" and is_mp3_of_unknown_length(path)):
            raise InputError(f"{path} does not say how long it is, so its end would be lost: encode it again")
        if file.format == "FLAC" and not _has_last_sample(file):
            raise InputError(
                f"{path} is truncated: the end of its {_clock(file.frames, file.samplerate)} is missing; "
                "get a whole copy"
            )
        return AudioInfo(file.samplerate, file.channels, file.frames)


def read_blocks(
    path: str | os.PathLike[str], block_samples: int = BLOCK_SAMPLES
) -> Iterator[Float32[np.ndarray, "channel block"]]:
    """Reads an audio file from start to end in blocks of at most `block_samples`.

    Raises:
      InputError: as for `inspect`, and when a part of the file is damaged or has NaN or infinite samples.
    """
    import soundfile

    path = Path(path)
    info = inspect(path)
    done = 0
    with _open(path) as file:
        while True:
            try:
                block = file.read(block_samples, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise InputError(f"{path} is damaged at {_clock(done, info.sample_rate)}: get a whole copy") from error
            if len(block) == 0:
                break
            if not np.isfinite(block).all():
                first = done + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise InputError(
                    f"{path} has NaN or infinite samples, the first at {_clock(first, info.sample_rate)}: "
                    "export it again"
                )
            done += len(block)
            yield np.ascontiguousarray(block.T)
    if done == 0:
        raise InputError(f"{path} has no samples, so it holds nothing to separate")


def read_whole(path: str | os.PathLike[str]) -> Iterator[Float32[np.ndarray, "channel block"]]:
    """Reads a file as `read_blocks` does, and checks that it has as many samples as its header says.

    An mp3 may have fewer, since its header may be an estimate.

    Raises:
      InputError: as for `read_blocks`, and after the last block if the file ended early.
    """
    path = Path(path)
    expected, done = inspect(path), 0
    for block in read_blocks(path):
        done += block.shape[-1]
        yield block
    if done < expected.samples and path.suffix.lower() != ".mp3":
        raise InputError(f"{path} is damaged: it ends after {done} of its {expected.samples} samples; get a whole copy")


def resample_blocks(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], in_rate: int, out_rate: int
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Resamples a stream of blocks at soxr's "very high" quality, without a delay.

    n samples become round(n * out_rate / in_rate): the same samples that soxr.resample returns for the whole recording.
    Rates are in Hz; blocks are passed through unchanged if the rates are equal.
    """
    if in_rate == out_rate:
        yield from blocks
        return
    import soxr

    stream, channels = None, 0
    for block in blocks:
        if stream is None:
            channels = len(block)
            stream = soxr.ResampleStream(in_rate, out_rate, channels, quality="VHQ")
        # The filter may keep all samples of the first blocks.
        if len(out := stream.resample_chunk(np.ascontiguousarray(block.T))):
            yield np.ascontiguousarray(out.T)
    if stream is not None:
        out = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
        if len(out):
            yield np.ascontiguousarray(out.T)


def _checked_size(path: Path) -> int:
    """Returns the size in bytes of a file, which must be regular, readable and not empty."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file: {_READABLE}")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): {_READABLE}")
    return status.st_size


def _open(path: Path):
    import soundfile

    try:
        return _sequential_sound_file()(system_name(path))
    # For a name that ends in .raw soundfile expects no header, and raises a TypeError because no sample rate was given.
    except (soundfile.SoundFileError, TypeError) as error:
        raise InputError(f"{path} is not audio that can be read: {_READABLE}") from error


def _has_last_sample(file) -> bool:
    import soundfile

    try:
        file.seek(file.frames - 1)
        return len(file.read(1)) == 1
    except soundfile.SoundFileError:
        return False


def system_name(path: Path) -> Any:
    """Returns a file's name as soundfile accepts it: bytes on POSIX, for names that are not UTF-8, else a str."""
    return os.fsencode(path) if os.name == "posix" else str(path)


@functools.cache
def _sequential_sound_file():
    """Returns a subclass of soundfile.SoundFile that does not seek after each read.

    soundfile seeks to the position where the file is anyway. After that seek libsndfile (1.2.2) returns wrong samples,
    some of them zeros, for many mp3 files.
    """
    import soundfile

    class SequentialSoundFile(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return SequentialSoundFile


def _clock(samples: int, sample_rate: int) -> str:
    """Formats a position as '1:02.345' (minutes, seconds) or '1:01:02.345'."""
    seconds = samples / sample_rate
    minutes = math.floor(seconds / 60)
    text = f"{seconds - 60 * minutes:06.3f}"
    return f"{minutes // 60}:{minutes % 60:02}:{text}" if minutes >= 60 else f"{minutes}:{text}"
