"""Paths that may lie in a bucket (gs://): errors that name them, uploads, and a cache of downloaded files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeAlias

from wroformer_jax.errors import InputError
from wroformer_jax.io.files import check_space, disk_errors_named, locked, replacing

if TYPE_CHECKING:
    from etils import epath

    # Local paths stay pathlib's. epath would take a local /s3/songs for a bucket, and its `exists` returns False where
    # pathlib's raises because a folder is closed to us.
    Place: TypeAlias = Path | epath.Path
else:
    Place = PurePath  # the base class of both: importing epath is slow, and few commands meet a bucket

SCHEME = "gs://"

_BLOCK_BYTES = 1 << 22

_log = logging.getLogger(__name__)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path has a scheme, as gs://bucket/songs does."""
    return "://" in os.fspath(path)


def as_place(path: str | os.PathLike[str]) -> Place:
    """Returns a `pathlib.Path`, or an `etils.epath.Path` for a path in a bucket."""
    if not is_remote(path):
        return Path(path)
    from etils import epath

    return epath.Path(path)


def place(path: str | os.PathLike[str]) -> Place:
    """Checks a path and returns it as `as_place` does.

    From then on the client of the buckets caches no listings, so that files which others write are seen at once.

    Raises:
      InputError: the path has a scheme other than gs://, or gcsfs is not installed.
    """
    if not is_remote(path):
        return Path(path)
    if not os.fspath(path).startswith(SCHEME):
        raise InputError(f"{path}: expected a local path, or one in a bucket of Google Cloud Storage ({SCHEME})")
    from etils.epath import backend

    with access(path):
        client = backend.fsspec_backend.fs(path)
        client.invalidate_cache()
        client.dircache.use_listings_cache = False
    return as_place(path)


@contextlib.contextmanager
def access(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns every error that prevents the use of `path` into an InputError, except that nothing exists there.

    Put only calls to the file system or the bucket inside: for a bucket, every exception counts as one of its client.
    """
    # gcsfs prints a traceback for each refusal; our error already says the reason.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        yield
    except (InputError, FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:
        if not is_remote(path) and not isinstance(error, OSError):
            raise
        if isinstance(error, ImportError):
            raise InputError(f"{path} is in a bucket, which needs gcsfs: pip install 'wroformer-jax[gcs]'") from error
        raise InputError(f"cannot use {path}: {_reason(error)}") from error


def num_bytes(path: Place) -> int:
    """Returns the size of a file in bytes."""
    # Not epath's stat for local files: it fails where their owner has no name, as in some containers.
    return os.path.getsize(path) if isinstance(path, Path) else path.stat().length


def write_whole(path: Place, text: str) -> None:
    """Writes a text file, which gets its name when it is whole.

    Raises:
      InputError: it cannot be written.
    """
    if is_remote(path):  # an object appears in a bucket when it is closed
        with _writing(path):
            path.write_text(text, encoding="utf-8")
        return
    with disk_errors_named(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_tree(path: Place) -> None:
    """Deletes a directory and everything in it."""
    if isinstance(path, Path):
        shutil.rmtree(path)
    else:
        path.rmtree()


def upload(local: Path, remote: Place) -> None:
    """Copies a file into a bucket, 4 MiB at a time.

    Raises:
      InputError: the file cannot be written there, or has another size there.
    """
    sent = 0  # counted, since the file may grow meanwhile
    with local.open("rb") as source, _writing(remote):
        with remote.open("wb") as target:
            while block := source.read(_BLOCK_BYTES):
                sent += target.write(block)
        arrived = num_bytes(remote)
    if arrived != sent:
        raise InputError(f"{remote} has {arrived:,} of the {sent:,} bytes of {local}: copy it again")


def cache_folder(kind: str, key: str) -> Path:
    """Returns the folder for copies of `key`, in WROFORMER_CACHE or ~/.cache/wroformer_jax. It need not exist yet."""
    cache = Path(os.environ.get("WROFORMER_CACHE") or Path.home() / ".cache" / "wroformer_jax")
    return cache / kind / hashlib.sha256(key.encode()).hexdigest()[:16]


def fetch(remote: Place, num_bytes: int, version: str) -> Path:
    """Returns a local copy of a file in a bucket, which the first call downloads.

    The copy stays in the folder `sets` of WROFORMER_CACHE, or else of ~/.cache/wroformer_jax. If several processes ask
    for a file at the same time, one downloads it and the others wait.

    Args:
      remote: the file.
      num_bytes: its size.
      version: the version of the set that the file belongs to; copies of other versions are not used.

    Raises:
      InputError: the file is missing, has another size or cannot be reached, or the disk is full.
    """
    folder = cache_folder("sets", f"{remote.parent}\0{version}")
    local = folder / remote.name
    with disk_errors_named(local):
        if _has_size(local, num_bytes):
            return local
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f".{remote.name}.lock"
        lock.touch()
        with locked(lock, wait=True):
            if not _has_size(local, num_bytes):
                _download(remote, num_bytes, local)
    return local


@contextlib.contextmanager
def _writing(remote: Place) -> Iterator[None]:
    try:
        with access(remote):
            yield
    except FileNotFoundError as error:
        raise InputError(f"cannot use {remote}: there is no such bucket") from error


def _download(remote: Place, num_bytes: int, local: Path) -> None:
    check_space(local.parent, num_bytes)
    _log.info("copying %s (%.0f MB) to %s", remote, num_bytes / 1e6, local)
    with replacing(local) as temporary:
        with temporary.open("wb") as target:
            try:
                for block in _blocks(remote):
                    target.write(block)
            except FileNotFoundError as error:
                raise InputError(f"{remote} is missing: restore it, or prepare the set again") from error
        if (arrived := temporary.stat().st_size) != num_bytes:
            raise InputError(
                f"{remote} has {arrived:,} bytes instead of {num_bytes:,}: restore it, or prepare the set again"
            )


def _blocks(remote: Place) -> Iterator[bytes]:
    with access(remote), remote.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _has_size(path: Path, num_bytes: int) -> bool:
    try:
        return path.stat().st_size == num_bytes
    except FileNotFoundError:
        return False


def _reason(error: Exception) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]
