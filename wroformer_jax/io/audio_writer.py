"""Writes the stems of a song as audio files, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16, Int32

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import _system_name, inspect

_WAV_LIMIT = 2**32 - 2**20  # bytes of samples; a wav counts them in 32 bits, and needs room for its header


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How samples are stored in a written file."""

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
    """Writes the files of one song side by side, block by block; all of them appear at the end, or none.

    A context manager: inside it the samples go to hidden temporary files next to their destinations, which are
    checked and renamed on leaving it. If it is left by an exception, the temporary files and the folders
    that were made for them are deleted. If one file cannot be renamed, those that were are taken away again, and
    the files that they replaced are put back.

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
        self._peaks = dict.fromkeys(paths, 0.0)  # largest absolute sample of each stem, 1 is full scale
        self._paths = dict(paths)
        self._temporary = {name: _hidden(path, "part") for name, path in paths.items()}
        self._sample_rate, self._channels, self._encoding = sample_rate, channels, encoding
        is_long = samples * channels * encoding.bits // 8 > _WAV_LIMIT
        self._container = "RF64" if is_long and encoding.container == "WAV" else encoding.container
        self._written = 0
        self._files = {}
        self._made_folders: list[Path] = []

    def __enter__(self) -> SongWriter:
        import soundfile

        self._refuse_directories()  # which renaming would find at the end of a long song
        try:
            for name, path in self._paths.items():
                with _writing(path):
                    self._make_folder(path.parent)
                    self._temporary[name].touch()
                    self._files[name] = soundfile.SoundFile(
                        _system_name(self._temporary[name]),
                        "w",
                        self._sample_rate,
                        self._channels,
                        format=self._container,
                        subtype=self._encoding.subtype,
                    )
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, stems: Mapping[str, Float32[np.ndarray, "channel block"]]) -> None:
        """Appends a block of each stem; integer formats hold what goes over full scale at full scale."""
        for name, block in stems.items():
            self._peaks[name] = max(self._peaks[name], float(np.abs(block).max(initial=0.0)))
            samples = block if self._encoding.is_float else _quantise(block, self._encoding.bits)
            with _writing(self._paths[name]):
                self._files[name].write(samples.T)
        self._written += block.shape[-1]

    def clipped(self) -> dict[str, float]:
        """For each stem that went over full scale in an integer format, by how many dB."""
        if self._encoding.is_float:
            return {}
        return {name: 20 * math.log10(peak) for name, peak in self._peaks.items() if peak > 1}

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is not None:
            self._discard()
            return
        try:
            for name, path in self._paths.items():
                with _writing(path):
                    self._files[name].close()
                # libsndfile does not report what it could not write while closing.
                if not _is_whole(self._temporary[name], self._written):
                    raise _unwritable(path, "what was written is not whole")
            self._rename_all()
        except BaseException:
            self._discard()
            raise

    def _refuse_directories(self) -> None:
        for path in self._paths.values():
            if os.path.isdir(path):
                raise InputError(f"{path} cannot be written: it is a directory, choose another output folder")

    def _rename_all(self) -> None:
        self._refuse_directories()
        replaced = []
        with contextlib.ExitStack() as undo:
            for name, path in self._paths.items():
                with _writing(path):
                    # What undoes a step is noted before it, so that an interruption between them loses nothing.
                    if os.path.lexists(path):
                        old = _hidden(path, "old")
                        undo.callback(_put_back, old, path)
                        path.replace(old)
                        replaced.append(old)
                    else:
                        undo.callback(_remove, path)
                    self._temporary[name].replace(path)
            undo.pop_all()
        for old in replaced:
            _remove(old)

    def _make_folder(self, folder: Path) -> None:
        missing = list(itertools.takewhile(lambda parent: not parent.exists(), (folder, *folder.parents)))
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._made_folders.append(parent)

    def _discard(self) -> None:
        for file in self._files.values():
            # Closing flushes, which fails again on a full disk; the file is deleted next.
            with contextlib.suppress(RuntimeError, OSError):
                file.close()
        for temporary in self._temporary.values():
            _remove(temporary)
        # A folder that holds something else by now stays.
        for folder in reversed(self._made_folders):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _hidden(path: Path, purpose: str) -> Path:
    """A name beside `path` that no other process uses and no player lists."""
    return path.with_name(f".{path.name}.{os.getpid()}.{purpose}")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _put_back(old: Path, path: Path) -> None:
    with contextlib.suppress(OSError):
        old.replace(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns whatever keeps `path` from being written into one sentence."""
    import soundfile

    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    # ValueError is soundfile's refusal of a format.
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
    """Nearest integers, held at full scale; 24 bits lie in the upper part of 32, as libsndfile wants them.

    Written out because the scale is then the one that reading divides by, for every format: what is read from a
    16-bit file and written to one is bit-identical.
    """
    scale = 2.0 ** (bits - 1)
    integers = np.clip(np.rint(block * np.float32(scale)), -scale, scale - 1)
    return integers.astype(np.int16) if bits == 16 else integers.astype(np.int32) << (32 - bits)
