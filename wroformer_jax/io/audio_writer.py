"""Writes the stems of a song as audio files; a file gets its name when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16, Int32

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import inspect, system_name

_WAV_LIMIT = 2**32 - 2**20  # bytes of samples; a wav counts its bytes in 32 bits, header included


@dataclasses.dataclass(frozen=True)
class Encoding:
    """An audio format of written files."""

    suffix: str
    container: str  # as libsndfile names it
    subtype: str  # as libsndfile names it
    bits: int  # for each sample
    is_float: bool = False


ENCODINGS = {
    "wav16": Encoding(".wav", "WAV", "PCM_16", 16),
    "wav24": Encoding(".wav", "WAV", "PCM_24", 24),
    "wav32f": Encoding(".wav", "WAV", "FLOAT", 32, is_float=True),
    "flac16": Encoding(".flac", "FLAC", "PCM_16", 16),
    "flac24": Encoding(".flac", "FLAC", "PCM_24", 24),
}


class SongWriter:
    """Writes the files of one song side by side, buffer by buffer.

    A context manager. Inside it the samples go to hidden temporary files next to their destinations; on leaving it
    these are checked, all of them, and then renamed one after the other. A file that bears its final name is therefore
    whole. If the context is left by an exception, no file is renamed, and the temporary files and the folders that were
    made for them are deleted.

    Args:
      paths: for each stem, the file to write; an existing file is replaced.
      sample_rate: in Hz.
      channels: of every file.
      samples: how many will be written for each channel, which decides whether a wav must be an RF64.
      encoding: one of the values of ENCODINGS.

    Raises:
      InputError: a file cannot be written (no permission, disk full, format without this sample rate, a directory
        of that name).
    """

    def __init__(
        self, paths: Mapping[str, Path], *, sample_rate: int, channels: int, samples: int, encoding: Encoding
    ) -> None:
        self._peaks = dict.fromkeys(paths, 0.0)  # largest absolute sample of each stem; 1 is full scale
        self._paths = dict(paths)
        # A name that no other process uses and no player lists.
        self._temporary = {name: path.with_name(f".{path.name}.{os.getpid()}.part") for name, path in paths.items()}
        self._sample_rate, self._channels, self._encoding = sample_rate, channels, encoding
        is_long = samples * channels * encoding.bits // 8 > _WAV_LIMIT
        self._container = "RF64" if is_long and encoding.container == "WAV" else encoding.container
        self._written = 0
        self._files = {}
        self._made_folders: list[Path] = []

    def __enter__(self) -> SongWriter:
        self._refuse_directories()  # else the rename at the end of a long song would be the first to fail
        try:
            for name, path in self._paths.items():
                with _write_errors_named(path):
                    self._make_folder(path.parent)
                    self._files[name] = self._open(self._temporary[name])
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, stems: Mapping[str, Float32[np.ndarray, "channel block"]]) -> None:
        """Appends a buffer of samples to each stem; integer formats clip what exceeds full scale."""
        for name, block in stems.items():
            self._peaks[name] = max(self._peaks[name], float(np.abs(block).max(initial=0.0)))
            samples = block if self._encoding.is_float else _quantise(block, self._encoding.bits)
            with _write_errors_named(self._paths[name]):
                self._files[name].write(samples.T)
        self._written += next(iter(stems.values())).shape[-1]

    def clipped(self) -> dict[str, float]:
        """Returns, for each stem that was clipped, by how many dB it exceeded full scale."""
        if self._encoding.is_float:
            return {}
        return {name: 20 * math.log10(peak) for name, peak in self._peaks.items() if peak > 1}

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exception_type is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        for name, path in self._paths.items():
            with _write_errors_named(path):
                self._files[name].close()
            # libsndfile does not report what it could not write while closing.
            if not _is_whole(self._temporary[name], self._written):
                raise _unwritable(path, "the written file is not whole")
        self._refuse_directories()
        for name, path in self._paths.items():
            with _write_errors_named(path):
                self._temporary[name].replace(path)

    def _open(self, path: Path) -> Any:
        import soundfile

        path.touch()
        subtype = self._encoding.subtype
        name = system_name(path)
        return soundfile.SoundFile(name, "w", self._sample_rate, self._channels, subtype, format=self._container)

    def _refuse_directories(self) -> None:
        for path in self._paths.values():
            if os.path.isdir(path):
                raise InputError(f"{path} cannot be written: it is a directory, choose another output folder")

    def _make_folder(self, folder: Path) -> None:
        missing = list(itertools.takewhile(lambda parent: not parent.exists(), (folder, *folder.parents)))
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._made_folders.append(parent)

    def _discard(self) -> None:
        """Deletes the temporary files, and the folders that were made and are empty."""
        for file in self._files.values():
            # Closing flushes, which fails again on a full disk; the file is deleted next.
            with contextlib.suppress(RuntimeError, OSError):
                file.close()
        for temporary in self._temporary.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        for folder in reversed(self._made_folders):
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _write_errors_named(path: Path) -> Iterator[None]:
    """Turns every error that prevents writing `path` into an InputError that names it."""
    import soundfile

    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    # soundfile raises a ValueError when it refuses a format.
    except (soundfile.SoundFileError, ValueError) as error:
        raise _unwritable(path, str(error).rstrip(". ")) from error


def _unwritable(path: Path, reason: str) -> InputError:
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    free = shutil.disk_usage(folder).free / 2**20
    if free < 1:  # libsndfile calls it a system error
        reason = "the disk is full"
    return InputError(
        f"{path} cannot be written ({reason}; {free:,.1f} MiB of disk are free): "
        "make room, or choose another output folder or format"
    )


def _is_whole(path: Path, samples: int) -> bool:
    try:
        return inspect(path).samples == samples
    except InputError:
        return False


def _quantise(
    block: Float32[np.ndarray, "channel block"], bits: int
) -> Int16[np.ndarray, "channel block"] | Int32[np.ndarray, "channel block"]:
    """Rounds samples to integers and clips them at full scale; 24-bit values lie in the upper bits of 32.

    libsndfile could do this, but its scale depends on the format. Here it is always the one that reading divides by, so
    that samples read from a 16-bit file are written to another one bit for bit.
    """
    scale = 2.0 ** (bits - 1)
    integers = np.clip(np.rint(block * np.float32(scale)), -scale, scale - 1)
    return integers.astype(np.int16) if bits == 16 else integers.astype(np.int32) << (32 - bits)
