"""Audio files and sample rates, block by block: nothing here ever holds a whole recording.

Blocks are float32 arrays (channels, samples), full scale 1. Files are checked when they are opened (`inspect`)
and while they are read; written files appear under their names only when all of a song's files are whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio_headers import is_mp3_of_unknown_length, promised_bytes

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")  # what is looked for in a folder
BLOCK_SAMPLES = 1 << 16

_READABLE = "expected a whole wav, flac, ogg, mp3 or aiff file"
_CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")  # as libsndfile names them
_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's number of samples of a FLAC file that does not say


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says."""

    sample_rate: int  # Hz
    channels: int  # 1 or 2
    samples: int  # for each channel; an estimate for an mp3 without an index


def inspect(path: str | os.PathLike[str]) -> AudioInfo:
    """Opens an audio file and checks all that can be checked without decoding it.

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
                f"{path} is truncated: by its header it has at least {promised:,} bytes, but there are {size:,}; "
                "get a whole copy"
            )
        if file.channels > 2:
            raise InputError(f"{path} has {file.channels} channels: mix it down to 1 or 2 first")
        if file.frames == 0:
            raise InputError(f"{path} has no samples: there is nothing to separate")
        if file.frames == _UNKNOWN_LENGTH or (file.format == "MP3" and is_mp3_of_unknown_length(path)):
            raise InputError(f"{path} does not say how long it is, so that its end would be lost: encode it again")
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
      InputError: as `inspect`, and where damage, NaN or infinite samples are met on the way.
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
        raise InputError(f"{path} has no samples: there is nothing to separate")


def read_whole(path: str | os.PathLike[str]) -> Iterator[Float32[np.ndarray, "channel block"]]:
    """`read_blocks`, of a file that must hold as many samples as its header says.

    Raises:
      InputError: as `read_blocks`, and at its end if a file ends early; the header of an mp3 may be an estimate.
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
    """Resamples a stream of blocks with soxr's very high quality, without delay.

    n samples become round(n * out_rate / in_rate), the same ones that soxr.resample gives for all of them at
    once. Rates are in Hz; equal rates pass the blocks through.
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
        # Right after the start all of a block can stay in the filter.
        if len(out := stream.resample_chunk(np.ascontiguousarray(block.T))):
            yield np.ascontiguousarray(out.T)
    if stream is not None:
        out = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
        if len(out):
            yield np.ascontiguousarray(out.T)


def _checked_size(path: Path) -> int:
    """Size in bytes of a regular, readable file that is not empty."""
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
        return _sequential_sound_file()(_system_name(path))
    # soundfile takes a name that ends in .raw for samples without a header and asks for its rate by a TypeError.
    except (soundfile.SoundFileError, TypeError) as error:
        raise InputError(f"{path} is not audio that can be read: {_READABLE}") from error


def _has_last_sample(file) -> bool:
    import soundfile

    try:
        file.seek(file.frames - 1)
        return len(file.read(1)) == 1
    except soundfile.SoundFileError:
        return False


def _system_name(path: Path) -> str | bytes:
    """The name as soundfile takes it whole: names that are not UTF-8 (old music collections) are bytes there."""
    return os.fsencode(path) if os.name == "posix" else str(path)


@functools.cache
def _sequential_sound_file():
    """soundfile.SoundFile without the seek that follows each of its reads, where libsndfile lets us seek.

    The seek goes to where the file is anyway, but after it libsndfile (1.2.2) gives wrong samples, some of them
    zeros, for many mp3 files.
    """
    import soundfile

    class SequentialSoundFile(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return SequentialSoundFile


def _clock(samples: int, sample_rate: int) -> str:
    """'1:02.345' (minutes, seconds) or '1:01:02.345'."""
    seconds = samples / sample_rate
    minutes = math.floor(seconds / 60)
    text = f"{seconds - 60 * minutes:06.3f}"
    return f"{minutes // 60}:{minutes % 60:02}:{text}" if minutes >= 60 else f"{minutes}:{text}"
