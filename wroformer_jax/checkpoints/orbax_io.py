"""Saves and restores trees of arrays with Orbax, and distinguishes a damaged checkpoint from one of another model.

Every call of Orbax is inside `with quiet_orbax() as ocp:`, which keeps Orbax from logging and its threads from
printing tracebacks.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote

# TensorStore's errors begin with one of these if a bucket does not answer or refuses access. They say nothing about
# the files in it.
_UNREACHABLE = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|CANCELLED|UNKNOWN"
)


class DamagedError(Exception):
    """Files are missing, cut short or garbled; the message is one line."""


def refuse_pattern(path: Place) -> None:
    """Raises an InputError for a path that contains *, ? or [, where Orbax would lose weights without an error.

    Orbax finds the parts that it wrote, to join them, by using the whole path as a glob pattern.
    """
    if glob.has_magic(str(path := absolute(path))):
        raise InputError(f"cannot write {path}: choose a place without *, ? and [ in its path")


def absolute(path: Place) -> Place:
    """Returns the absolute path; the path of a bucket always is."""
    return path if is_remote(path) else path.absolute()


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays to the directory `path`, which must not exist and has passed `refuse_pattern`."""
    with quiet_orbax() as ocp:
        # Nothing changes the arrays while Orbax writes them, so it need not copy them first.
        uncopied = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
        registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, uncopied))
        with contextlib.closing(ocp.Checkpointer(tree_handler(ocp, type_handler_registry=registry))) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(jax.tree.map(np.asarray, tree)))


def restore_tree(path: Place, like: Any, *, to_numpy: bool = False) -> Any:
    """Reads a tree.

    Args:
      path: the directory, which may be in a bucket.
      like: a tree of arrays or of `jax.ShapeDtypeStruct` with the expected structure, shapes and dtypes. The result
        has its shardings.
      to_numpy: return NumPy arrays in place of JAX arrays.

    Raises:
      InputError: the tree is intact but has another structure, or the bucket cannot be reached.
      DamagedError: the tree is damaged or missing.
    """
    try:
        with quiet_orbax() as ocp:
            return _read_tree(ocp, path, like, to_numpy)
    except Exception as error:
        # Orbax and TensorStore raise these, even a bare Exception, if files are missing, cut short or garbled.
        damage = isinstance(error, OSError | ValueError | KeyError | TypeError) or type(error) is Exception
        if isinstance(error, InputError):
            raise
        if is_remote(path) and _is_out_of_reach(cause := _cause(error)):
            with access(path):
                raise cause from None
        if not damage:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    with quiet_orbax():
        gc.collect()  # futures that the error kept alive report their own errors now, while Orbax is muted
    raise DamagedError(reason)


def _cause(error: BaseException) -> BaseException:
    """Returns TensorStore's own error, from which Orbax may have raised a bare Exception."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _is_out_of_reach(error: BaseException) -> bool:
    """Returns whether the bucket cannot be reached, as opposed to files in it being missing or garbled."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    # gcsfs and its dependencies raise exceptions of their own types.
    return bool(_UNREACHABLE.match(str(error))) or not isinstance(error, ValueError | KeyError | TypeError)


def check_leaves(what: str, found: Any, like: Any) -> None:
    """Raises an InputError that names the first difference between two trees.

    Args:
      what: names the tree in the message.
      found: a tree of arrays, or the metadata of one.
      like: the expected tree, of arrays or `jax.ShapeDtypeStruct`.
    """
    have, want = _describe(found), _describe(like)
    for name in sorted(want.keys() | have.keys()):
        if name not in have:
            raise InputError(f"{what}: {name} is missing, they belong to other settings")
        if name not in want:
            raise InputError(f"{what}: {name} is unknown, they belong to other settings")
        if None not in (have[name], want[name]) and have[name] != want[name]:
            raise InputError(f"{what}: {name} is {have[name]}, but these settings need {want[name]}")


def num_bytes(tree: Any) -> int:
    """Returns the total size of a tree's arrays in bytes."""
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


def tree_handler(ocp: Any, **options: Any) -> Any:
    """Returns Orbax's handler for trees, without compression, which saves 7 % of space and takes most of the time."""
    return ocp.PyTreeCheckpointHandler(use_compression=False, **options)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[Any]:
    """Yields the module `orbax.checkpoint`, and keeps Orbax from printing errors that it also raises.

    When one transfer fails, Orbax closes its event loop while others still run. Those then complain about the closed
    loop, or are garbage-collected with errors that nobody read.
    """
    report = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with muted_log():
            import orbax.checkpoint as ocp

            yield ocp
    except Exception:
        time.sleep(0.1)  # lets running transfers end
        raise
    finally:
        sys.unraisablehook = report


@contextlib.contextmanager
def muted_log() -> Iterator[None]:
    """Mutes Orbax's log messages, in all threads."""

    def not_from_orbax(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    absl = logging.getLogger("absl")
    absl.addFilter(not_from_orbax)
    try:
        yield
    finally:
        absl.removeFilter(not_from_orbax)


def _read_tree(ocp: Any, path: Place, like: Any, to_numpy: bool) -> Any:
    # Each process reads alone: if they read together, one that finds damage would leave the others waiting.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    handler = tree_handler(ocp, multiprocessing_options=alone)
    with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=alone)) as checkpointer:
        on_disk = handler.metadata(epath.Path(absolute(path)))  # the checkpointer's own metadata() hides errors
        check_leaves(f"the arrays in {path}", on_disk.tree, like)
        restore_args = jax.tree.map(lambda leaf: _restore_args(ocp, leaf, to_numpy), like)
        return checkpointer.restore(absolute(path), args=ocp.args.PyTreeRestore(item=like, restore_args=restore_args))


def _restore_args(ocp: Any, leaf: Any, to_numpy: bool) -> Any:
    if isinstance(leaf, np.ndarray | np.generic) or (to_numpy and hasattr(leaf, "dtype")):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    return ocp.RestoreArgs(restore_type=type(leaf))


def _describe(tree: Any) -> dict[str, str | None]:
    """Returns the dtype and shape of each leaf by its path; Orbax's metadata of an array counts as a leaf."""
    with quiet_orbax() as ocp:
        flat = ocp.tree.to_flat_dict(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {"/".join(path): _shape_and_dtype(leaf) for path, leaf in flat.items()}


def _shape_and_dtype(leaf: Any) -> str | None:
    dtype = getattr(leaf, "dtype", None)
    # Plain numbers and strings have no dtype, and Orbax stores typed random keys as plain numbers.
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
