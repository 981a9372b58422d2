"""Writes files that are either whole or absent, locks them, and names the errors of disks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wroformer_jax.errors import InputError


def _read_umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


# Reading the umask means setting it, for all threads: so once, at import, before other threads start.
_UMASK = _read_umask()


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or directory exists at `path`.

    Raises:
      InputError: the file system refuses to say, for instance because the name is too long or a folder is closed to us.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"cannot use the path {path}: {error.strerror}") from error
    except ValueError as error:  # a null character
        raise InputError(f"cannot use the path {os.fspath(path)!r}: {error}") from error
    return True


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raises an InputError if something exists at `path` and must not be overwritten."""
    if exists(path) and not overwrite:
        raise InputError(
            f"{path} exists already: remove it, choose another name, or overwrite it (with --overwrite, or in "
            "Python overwrite=True)"
        )


def open_to_others(temporary: Path) -> None:
    """Gives a temporary file or directory, which only its owner can read, the permissions of a new one."""
    temporary.chmod((0o777 if temporary.is_dir() else 0o666) & ~_UMASK)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary file beside `path`, with its suffix, and renames it to `path` after the block.

    If the block raises, the temporary file is deleted and an earlier file at `path` is untouched.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        open_to_others(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks a directory or a file against other processes that lock it; a killed process releases its lock.

    Does nothing where the system or the file system has no such locks.

    Args:
      path: the directory or file, which must exist.
      wait: wait until another process releases its lock.

    Raises:
      InputError: another process holds the lock, and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(f"{path} is in use by another run: wait for it, or choose another") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            os.close(handle)
            raise
    try:
        yield
    finally:
        os.close(handle)


def check_space(directory: str | os.PathLike[str], num_bytes: int) -> None:
    """Raises an OSError (ENOSPC) if the disk of `directory` has less than `num_bytes` free.

    Called before gigabytes are written, so that a full disk is found at once.
    """
    if (free := shutil.disk_usage(directory).free) < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free")


@contextlib.contextmanager
def disk_errors_named(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of a disk that is full or refuses into an InputError that names `path`.

    TensorStore, safetensors, torch and ArrayRecord raise errors of their own, which are recognised by their text.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if reason := _disk_reason(error):
            raise InputError(f"cannot write {path}: {reason}") from error
        raise


def _disk_reason(error: Exception) -> str | None:
    text = str(error)
    # As in "I/O error: ... (os error 28)" (safetensors) and "[os_error_code='28']" (TensorStore).
    code = re.search(r"os[ _]error(?:_code)?[ =']+(\d+)", text)
    number = error.errno if isinstance(error, OSError) else int(code[1]) if code else None
    if number == errno.ENOSPC:
        return f"the disk is full ({error.strerror})" if isinstance(error, OSError) else "the disk is full"
    if number is not None:
        return os.strerror(number)
    # As in "write() failed: No space left on device; writing a.array_record; at byte 2097152" (ArrayRecord).
    if call := re.match(r"\w+\(\) failed: ([^;]+)", text):
        return "the disk is full" if call[1] == os.strerror(errno.ENOSPC) else call[1]
    if "inline_container" in text:  # torch's writer does not say why a write failed
        return "the disk is full, or refuses"
    is_library = "shared object file" in text  # a library that cannot be loaded also raises an OSError
    return text if isinstance(error, OSError) and not is_library else None
