"""Several processes, one a host as a rule, that train one model: they find each other, agree, and wait for one another.

On a single host nothing here costs anything: there is one process, which is the first and agrees with itself.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.util
import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from wroformer_jax.errors import InputError

T = TypeVar("T")

_LONGEST_WORK = 6 * 3600  # seconds that processes wait for one of them: to synthesise songs, to read a checkpoint
_PER_HOST = ("loading.workers", "loading.prefetch")  # settings that hosts may have otherwise than the first

_barriers = itertools.count()  # a barrier's name is used once


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process with the others of the run. To be called before anything else of JAX.

    Without arguments it joins them if the environment says that there are several: on a TPU pod, under Slurm (`srun`)
    and under Open MPI they find each other without being told.

    Args:
      coordinator: HOST:PORT of the first process, which listens there.
      num_processes: how many there are.
      process_id: the number of this one, from 0.

    Raises:
      InputError: some of the three are given and others not, they are impossible, or the coordinator does not answer.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    alone = False
    if len(missing) == len(given):
        alone = not _environment_has_several()  # as far as the environment tells
        if alone and not _asks_the_metadata_server():
            return
    elif missing:
        raise InputError(f"--{missing[0]} is missing: --coordinator, --num_processes and --process_id go together")
    else:
        _check(coordinator, num_processes, process_id)
    # A notice of preemption is ours: `Preemption` lets the step under way end, and all processes save the same one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        if alone and isinstance(error, ValueError):  # JAX did not learn of other hosts either
            return
        raise InputError(
            f"cannot join the other processes ({str(error).splitlines()[0]}): start the same command on every host, "
            "or give --coordinator, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes in their order; a value is anything that JSON can say. All must call this."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = _all_rows(np.asarray([text.size]))
    rows = _all_rows(np.pad(text, (0, int(lengths.max()) - text.size))[None])
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def together(work: Callable[[], T]) -> T:
    """What `work` returns in this process, once it is done in all; what it raises in one is an InputError in all.

    In the process that raised it, anything but an InputError stays what it is.
    """
    mistake, result = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others must not wait for ever
        mistake = error
    _wait_for_all()
    said = gather(None if mistake is None else str(mistake) or type(mistake).__name__)
    if mistake is not None and not isinstance(mistake, InputError):
        raise mistake
    for sentence in filter(None, said):
        raise InputError(sentence) from mistake
    return result


def in_first(work: Callable[[], Any]) -> None:
    """Does `work` in the first process while the others wait; its InputError is raised in all."""
    together(work if is_first() else lambda: None)


def check_same(settings: Mapping[str, Any]) -> None:
    """Raises an InputError, in all processes, if one of them was given other settings than the first."""
    others = gather(settings)

    def compare() -> None:
        here, there = _flat(others[jax.process_index()]), _flat(others[0])
        for name in there | here:
            if name not in _PER_HOST and here.get(name) != there.get(name):
                raise InputError(
                    f"the hosts have different settings: process {jax.process_index()} has {name} = "
                    f"{here.get(name)!r}, the first one {there.get(name)!r}: start the same command on every host"
                )

    together(compare)


def whole_here(tree: Any, mesh: Mesh) -> Any:
    """A tree that is spread over the mesh, whole on one device of each process. All must call this."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _gather_on(mesh)(tree))


@functools.cache
def _gather_on(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


class Preemption:
    """Whether SIGTERM came, the notice that the machine will be taken away. A context manager: it then listens.

    Args:
      mesh: that the processes share.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._noticed = threading.Event()
        self._votes = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._num_here = len(mesh.local_devices)
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._vote: Array | None = None

    @property
    def noticed(self) -> bool:
        """Whether SIGTERM came to this process."""
        return self._noticed.is_set()

    def comes(self, seconds: float) -> bool:
        """Whether SIGTERM came to this process, or comes in so many seconds."""
        return self._noticed.wait(seconds)

    def reached(self) -> bool:
        """Whether to stop after the step that was started last. All processes ask once a step, and hear the same.

        One process hears of its notice at once; several hear of it a step later, so that no device waits for an answer.
        """
        if jax.process_count() == 1:
            return self.noticed
        earlier = self._vote
        mine = np.full(self._num_here, self.noticed, np.int32)
        self._vote = self._any(jax.make_array_from_process_local_data(self._votes, mine))
        return earlier is not None and bool(earlier)

    def __enter__(self) -> Preemption:
        self._restore = contextlib.ExitStack()
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            before = signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())
            self._restore.callback(signal.signal, signal.SIGTERM, before)
        # Processes that meet in a computation for the first time give up soon (gloo, on CPUs, after 30 s). They meet
        # here, before each compiles the training step, which may take one of them much longer than another.
        _wait_for_all()
        self.reached()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()


def _environment_has_several() -> bool:
    def number(name: str) -> int:
        return int(text) if (text := os.environ.get(name, "")).isdigit() else 0

    slurm = "SLURM_STEP_NODELIST" in os.environ and number("SLURM_STEP_NUM_TASKS") > 1
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES", "")
    slices = number("MEGASCALE_NUM_SLICES") > 1
    return slurm or slices or "," in hosts or number("OMPI_COMM_WORLD_SIZE") > 1


def _asks_the_metadata_server() -> bool:
    """Whether this is a TPU machine whose metadata, which JAX can ask, say what it is part of."""
    has_tpu = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    on_tpu = has_tpu and importlib.util.find_spec("libtpu") and "tpu" in wanted.split(",")
    # What GKE tells is in the environment; TPU_SKIP_MDS_QUERY says that there is no such server.
    told = any(name in os.environ for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return bool(on_tpu) and not told


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator is {coordinator!r}, expected HOST:PORT, as in 10.0.0.2:8476")
    if num_processes < 1:
        raise InputError(f"--num_processes is {num_processes}, expected a number of at least 1")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id is {process_id}, expected a number from 0 to {num_processes - 1}")


def _wait_for_all() -> None:
    """Waits until all processes are here, without a device: computations give up after some minutes."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        everybody = set(range(jax.process_count()))
        multihost.sync_global_processes(f"wroformer:{next(_barriers)}", timeout=_LONGEST_WORK, processes=everybody)


def _all_rows(rows: Shaped[np.ndarray, "local ..."]) -> Shaped[np.ndarray, "all ..."]:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping of mappings as one, with names like "model.dim"."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
