"""Keeps compiled programs on disk, so that a command that ran before need not compile again.

JAX has such a cache; here it gets a folder, and bounds. A program is found again if it is the same, for the same
devices, jaxlib and XLA_FLAGS. JAX's key contains the instruction set of a CPU, so machines of different kinds can share
a home.
"""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from typing import Any

from wroformer_jax.cli.output import say

# XLA before this version rejects every program that it has cached on CPUs with AVX-512, and prints a page about each
# (https://github.com/jax-ml/jax/issues/38445).
_OLDEST_JAX = (0, 10, 2)
_SETTINGS = {
    "jax_compilation_cache_max_size": 2 << 30,  # bytes; the programs that were not used for longest are deleted
    "jax_persistent_cache_min_compile_time_secs": 0.1,  # what compiles faster is not worth a file
}
_UNBOUNDED = -1  # as jax_compilation_cache_max_size
_LOCK, _PROGRAM, _LAST_USE = ".lockfile", "-cache", "-atime"  # names of JAX's files


def keep_compiled_programs() -> None:
    """Lets JAX keep the programs that it compiles from now on in `default_folder`, and load them from there.

    What the user has chosen stays: JAX_COMPILATION_CACHE_DIR or jax.config name another folder, an empty
    JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE=false turn the cache off. If the folder cannot be used,
    the command says so in one line and goes on without it.
    """
    import jax

    config: Any = jax.config  # its fields are made at run time
    chosen = config.jax_compilation_cache_dir or "JAX_COMPILATION_CACHE_DIR" in os.environ
    if chosen or not config.jax_enable_compilation_cache or jax.__version_info__ < _OLDEST_JAX:
        return
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            config.update(name, value)
    try:
        folder = default_folder()
        _prepare(folder, is_bounded=config.jax_compilation_cache_max_size != _UNBOUNDED)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        reason = getattr(error, "strerror", None) or error
        say(f"wroformer: compiled programs are not kept for the next time ({reason}); WROFORMER_CACHE names a folder")
        return
    config.update("jax_compilation_cache_dir", str(folder))
    # A full disk, say. JAX compiles instead, so there is nothing to do.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def default_folder() -> Path:
    """Returns `compiled` in WROFORMER_CACHE, or else in wroformer_jax in $XDG_CACHE_HOME or ~/.cache.

    Raises:
      RuntimeError: the user has no home.
    """
    if own := os.environ.get("WROFORMER_CACHE"):
        return Path(own) / "compiled"
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # the standard says that a relative path is to be ignored
        caches = Path.home() / ".cache"
    return caches / "wroformer_jax" / "compiled"


def _prepare(folder: Path, *, is_bounded: bool) -> None:
    """Makes the folder, and deletes programs that a process was killed over while it wrote them.

    Args:
      folder: for the programs.
      is_bounded: JAX deletes programs by their last use. Otherwise it does not write that, and nothing is deleted.

    Raises:
      OSError: the folder cannot be made, written or locked, or belongs to somebody else.
    """
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    # Its files are programs that will run.
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users may write to {folder}")
    if not is_bounded:
        return
    # JAX writes both files of a program while it holds this lock, the one with the time of its last use at the end.
    with filelock.FileLock(folder / _LOCK, timeout=10):
        for program in folder.glob(f"*{_PROGRAM}"):
            if not program.with_name(program.name.removesuffix(_PROGRAM) + _LAST_USE).exists():
                program.unlink()
