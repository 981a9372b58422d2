"""Trees of arrays on disk, in Orbax's format: written, read back, and damage told from a mistake.

Orbax calls happen in `with quiet_orbax() as ocp:`, where Orbax does not log and its threads do not print tracebacks.
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

from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, is_remote

# How TensorStore's errors begin when a bucket does not answer, or refuses: that says nothing of what is in it.
_UNREACHABLE = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|CANCELLED|UNKNOWN"
)


class DamagedError(Exception):
    """Files that are missing, cut short or garbled; the message is one line."""


def refuse_pattern(path: Place) -> None:
    """Raises an InputError for a directory in which Orbax would lose what it writes, without an error.

    Orbax looks for the parts that it wrote, to join them, with the whole path as a glob pattern.
    """
    if glob.has_magic(str(path := absolute(path))):
        raise InputError(f"cannot write {path}: choose a place without *, ? and [ in its path")


def absolute(path: Place) -> Place:
    """The path from the root; in a bucket it is that already."""
    return path if is_remote(path) else path.absolute()


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays to the directory `path`, which must not exist and has passed `refuse_pattern`."""
    import jax
    import numpy as np

    with quiet_orbax() as ocp:
        # Nothing changes the arrays while they are written, so Orbax need not write a copy of them all.
        uncopied = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
        registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, uncopied))
        with contextlib.closing(ocp.Checkpointer(tree_handler(ocp, type_handler_registry=registry))) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(jax.tree.map(np.asarray, tree)))


def restore_tree(path: Place, like: Any, *, to_numpy: bool = False) -> Any:
    """Reads the tree at `path`, local or in a bucket, into the structure of `like`, a tree of arrays or descriptions.

    Raises:
      InputError: it is whole, but of another structure, or the bucket cannot be reached.
      DamagedError: it is damaged.
    """
    try:
        with quiet_orbax() as ocp:
            return _read_tree(ocp, path, like, to_numpy)
    except Exception as error:
        # Orbax and TensorStore raise these for files that are missing, cut short or garbled, even bare Exceptions.
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
        gc.collect()  # what the error held, now that it is gone
    raise DamagedError(reason)


def _cause(error: BaseException) -> BaseException:
    """What TensorStore has raised, where Orbax raises a bare Exception from it."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _is_out_of_reach(error: BaseException) -> bool:
    """Whether a bucket cannot be reached, rather than that something in it is missing or garbled."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    # gcsfs and what it is made of raise errors of their own.
    return bool(_UNREACHABLE.match(str(error))) or not isinstance(error, ValueError | KeyError | TypeError)


def check_leaves(what: str, found: Any, like: Any) -> None:
    """Raises an InputError that names the first difference between the tree `found` and the one expected."""
    have, want = _describe(found), _describe(like)
    for name in sorted(want.keys() | have.keys()):
        if name not in have:
            raise InputError(f"{what}: {name} is missing, they belong to other settings")
        if name not in want:
            raise InputError(f"{what}: {name} is unknown, they belong to other settings")
        if None not in (have[name], want[name]) and have[name] != want[name]:
            raise InputError(f"{what}: {name} is {have[name]}, but these settings need {want[name]}")


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    import jax

    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


def tree_handler(ocp: Any, **options: Any) -> Any:
    """How Orbax is to write a tree: float weights hardly compress (7 %), but that costs most of the time."""
    return ocp.PyTreeCheckpointHandler(use_compression=False, **options)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[Any]:
    """Yields the module `orbax.checkpoint`, and keeps Orbax from reporting what it raises to us anyway.

    When one of its transfers fails, the others end after Orbax has closed its event loop, and report that, or are
    collected with their errors unread.
    """

    report = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with muted_log():
            import orbax.checkpoint as ocp

            yield ocp
    except Exception:
        time.sleep(0.1)  # for transfers under way
        raise
    finally:
        sys.unraisablehook = report


@contextlib.contextmanager
def muted_log() -> Iterator[None]:
    """Keeps what Orbax logs, in any thread, to itself."""

    def not_from_orbax(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    absl = logging.getLogger("absl")
    absl.addFilter(not_from_orbax)
    try:
        yield
    finally:
        absl.removeFilter(not_from_orbax)


def _read_tree(ocp: Any, path: Place, like: Any, to_numpy: bool) -> Any:
    import jax
    from etils import epath

    # Each process reads for itself: one that finds damage would leave the others waiting for it.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    handler = tree_handler(ocp, multiprocessing_options=alone)
    with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=alone)) as checkpointer:
        on_disk = handler.metadata(epath.Path(absolute(path)))  # the checkpointer's own hides why it cannot be read
        check_leaves(f"the arrays in {path}", on_disk.tree, like)
        restore_args = jax.tree.map(lambda leaf: _restore_args(ocp, leaf, to_numpy), like)
        return checkpointer.restore(absolute(path), args=ocp.args.PyTreeRestore(item=like, restore_args=restore_args))


def _restore_args(ocp: Any, leaf: Any, to_numpy: bool) -> Any:
    import jax
    import numpy as np

    if isinstance(leaf, np.ndarray | np.generic) or (to_numpy and hasattr(leaf, "dtype")):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    return ocp.RestoreArgs(restore_type=type(leaf))


def _describe(tree: Any) -> dict[str, str | None]:
    """The dtype and shape of each leaf by its path; metadata that Orbax read counts as a leaf."""
    with quiet_orbax() as ocp:
        flat = ocp.tree.to_flat_dict(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {"/".join(path): _shape_and_dtype(leaf) for path, leaf in flat.items()}


def _shape_and_dtype(leaf: Any) -> str | None:
    import jax

    dtype = getattr(leaf, "dtype", None)
    # Plain numbers and texts carry no dtype; typed random keys are stored as plain numbers.
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return None
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
