"""Finds the audio files of a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import AUDIO_SUFFIXES


def audio_files(root: Path) -> list[PurePath]:
    """Returns the audio files below a folder, relative to it, sorted by folder and then by name.

    Skips names that begin with a dot, and follows links to folders.

    Raises:
      InputError: a folder cannot be read.
    """
    found = []
    for folder, folders, files in os.walk(root, onerror=_refuse_folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and not _leads_back(Path(folder, name))]
        relative = PurePath(folder).relative_to(root)
        found += [relative / name for name in files if name[0] != "." and Path(name).suffix.lower() in AUDIO_SUFFIXES]
    return sorted(found, key=lambda path: (path.parent, path.name))


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Returns the files by the names of their stems, in lower case.

    Raises:
      InputError: two files have the same stem.
    """
    stems: dict[str, Path] = {}
    for path in paths:
        stem = path.stem.lower()
        if (other := stems.setdefault(stem, path)) is not path:
            raise InputError(f"{other} and {path.name} are both the stem {stem}: keep one of them")
    return stems


def files_state(paths: Iterable[Path]) -> str:
    """Returns a short text that changes when one of the files is replaced or written to.

    Raises:
      InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()[:16]


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one of the folders that contain it."""
    return folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
