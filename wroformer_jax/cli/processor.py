"""How a command uses the CPU: the library that multiplies matrices, and the size of the pages of memory.

Both are settled by environment variables before JAX is imported. What the user has set stays.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

# YNNPACK, which XLA takes for products by default, needs up to a fifth more time for the products of these models than
# Eigen, which it takes with an empty list.
_XLA_FLAG, _XLA_VALUE = "--xla_cpu_experimental_ynn_fusion_type", ""
# The first version with that flag, and the first that was not looked at. Libtpu reads XLA_FLAGS, too.
_XLA_VERSIONS = {"jaxlib": ((0, 10, 2), (0, 13)), "libtpu": ((0, 0, 42), (0, 0, 51))}
# With pages of 2 MB instead of 4 kB, products and all else need 10 % less time together. glibc reads the variable when
# a process starts.
_GLIBC_TUNABLE, _GLIBC_VALUE = "glibc.malloc.hugetlb", "1"
_OLDEST_GLIBC = (2, 35)
_STARTED_ANEW = "WROFORMER_STARTED_ANEW"


def prepare_process(command: Sequence[str]) -> None:
    """Sets this process up for computing on a CPU. May start the command anew in the same process.

    Args:
      command: the whole command line, the interpreter first, as `sys.orig_argv` has it.
    """
    if all(knows_xla_flag(package, version) for package, version in _installed()):
        os.environ["XLA_FLAGS"] = with_xla_flag(os.environ.get("XLA_FLAGS", ""))
    if needs_new_start(os.environ, _glibc_version()):
        add_tunable(os.environ)
        os.environ[_STARTED_ANEW] = "1"
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # an interpreter that is not a file of its own: go on without the tunable
            os.execv(sys.executable, list(command))


def knows_xla_flag(package: str, version: str) -> bool:
    """Whether a version of jaxlib or libtpu is one of those that are known to have this module's flag.

    XLA ends a process whose XLA_FLAGS it does not know.
    """
    first, unknown = _XLA_VERSIONS[package]
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return numbers is not None and first <= tuple(map(int, numbers.groups())) < unknown


def _installed() -> Iterator[tuple[str, str]]:
    """Yields the packages with an XLA of their own that are installed, and their versions."""
    for package in _XLA_VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


def with_xla_flag(flags: str) -> str:
    """Returns XLA_FLAGS with this module's flag, unless they have it already."""
    if any(flag.partition("=")[0] == _XLA_FLAG for flag in flags.split()):
        return flags
    return f"{flags} {_XLA_FLAG}={_XLA_VALUE}".strip()


def needs_new_start(environment: Mapping[str, str], glibc: tuple[int, ...] | None) -> bool:
    """Whether the process runs without the tunable, and a new one could have it.

    Args:
      environment: the variables of this process.
      glibc: the version of its C library; None for another library.
    """
    if _STARTED_ANEW in environment:  # by an interpreter that drops the tunable: once is enough
        return False
    return glibc is not None and glibc >= _OLDEST_GLIBC and _GLIBC_TUNABLE not in environment.get("GLIBC_TUNABLES", "")


def add_tunable(environment: MutableMapping[str, str]) -> None:
    """Adds this module's tunable to those that are set."""
    tunables = [environment["GLIBC_TUNABLES"]] if environment.get("GLIBC_TUNABLES") else []
    environment["GLIBC_TUNABLES"] = ":".join([*tunables, f"{_GLIBC_TUNABLE}={_GLIBC_VALUE}"])


def _glibc_version() -> tuple[int, ...] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(int(part) for part in version.split(".")) if name == "glibc" else None
    except (AttributeError, OSError, ValueError):  # not Linux, or not glibc
        return None
