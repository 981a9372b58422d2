"""Several processes that train one model, usually one per host: how they find each other, agree, and wait.

With a single process everything here works and costs nothing.
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

from wroformer_jax.config.checks import flattened
from wroformer_jax.errors import InputError

T = TypeVar("T")

_LONGEST_WORK = 6 * 3600  # seconds that processes wait for one of them, as while it synthesises songs
_PER_HOST = ("loading.workers", "loading.prefetch")  # settings that may differ between hosts

_barriers = itertools.count()  # the name of a barrier can be used only once


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process with the others of the run. Call it before anything else of JAX.

    Without arguments, processes find each other by their environment: on a TPU pod, under Slurm (`srun`) and under
    Open MPI. If the environment shows a single process, nothing happens.

    Args:
      coordinator: HOST:PORT where the first process listens.
      num_processes: number of processes.
      process_id: number of this process, from 0.

    Raises:
      InputError: only some of the three arguments are given, one has an impossible value, or the coordinator does not
        answer.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    alone = False
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
    elif len(missing) < len(given):
        raise InputError(f"--{missing[0]} is missing: --coordinator, --num_processes and --process_id go together")
    else:
        alone = not _environment_has_several()  # as far as the environment shows
        if alone and not asks_metadata_server():
            return
    # `Preemption` handles SIGTERM instead of JAX's service: the step under way ends, and all processes save the same.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        if alone and isinstance(error, ValueError):  # JAX found no other hosts either
            return
        raise InputError(
            f"cannot join the other processes ({str(error).splitlines()[0]}): start the same command on every host, "
            "or give --coordinator, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this is the first process, which writes the files that are written once."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order. All processes must call it.

    Args:
      value: this process's value, of types that JSON has.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = _all_rows(np.asarray([text.size]))
    rows = _all_rows(np.pad(text, (0, int(lengths.max()) - text.size))[None])
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def together(work: Callable[[], T]) -> T:
    """Runs `work` in every process, waits for all, and returns this process's result.

    Raises:
      InputError: `work` failed in any process. A process in which it raised another error than an InputError raises
        that error unchanged.
    """
    mistake: Exception | None = None
    results: list[T] = []
    try:
        results.append(work())
    except Exception as error:  # any error: the other processes must not wait for ever
        mistake = error
    _wait_for_all()
    said = gather(None if mistake is None else str(mistake) or type(mistake).__name__)
    if mistake is not None and not isinstance(mistake, InputError):
        raise mistake
    for sentence in filter(None, said):
        raise InputError(sentence) from mistake
    return results[0]


def in_first(work: Callable[[], Any]) -> None:
    """Runs `work` in the first process while the others wait. If it fails, every process raises an InputError."""
    together(work if is_first() else lambda: None)


def check_same(settings: Mapping[str, Any]) -> None:
    """Raises an InputError in every process if one of them has other settings than the first."""
    others = gather(settings)

    def compare() -> None:
        here, there = flattened(others[jax.process_index()]), flattened(others[0])
        for name in there | here:
            if name not in _PER_HOST and here.get(name) != there.get(name):
                raise InputError(
                    f"the hosts have different settings: process {jax.process_index()} has {name} = "
                    f"{here.get(name)!r}, the first one {there.get(name)!r}: start the same command on every host"
                )

    together(compare)


def whole_here(tree: Any, mesh: Mesh) -> Any:
    """Gathers a tree that is spread over the mesh on one device of each process. All processes must call it."""
    if mesh.size == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _gather_on(mesh)(tree))


@functools.cache
def _gather_on(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


class Preemption:
    """Listens for SIGTERM, the notice that the machine will be taken away. Use it as a context manager.

    Args:
      mesh: the mesh that all processes share.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._noticed = threading.Event()
        self._votes = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._num_here = len(mesh.local_devices)
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._vote: Array | None = None

    @property
    def noticed(self) -> bool:
        """Whether this process got SIGTERM."""
        return self._noticed.is_set()

    def comes(self, seconds: float) -> bool:
        """Waits up to `seconds`; returns whether this process got SIGTERM by then."""
        return self._noticed.wait(seconds)

    def reached(self) -> bool:
        """Returns whether to stop after the step that was started last.

        All processes call it once per step and get the same answer. With several processes the answer comes one step
        late, so that no device waits for it.
        """
        if jax.process_count() == 1:
            return self.noticed
        earlier = self._vote
        mine = np.full(self._num_here, self.noticed, np.int32)
        self._vote = self._any(jax.make_array_from_process_local_data(self._votes, mine))
        return earlier is not None and bool(earlier)

    def __enter__(self) -> Preemption:
        self._restore = contextlib.ExitStack()
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            before = signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())
            self._restore.callback(signal.signal, signal.SIGTERM, before)
        # The first common computation fails if a process is late (on CPUs, gloo waits 30 s). So it happens here, before
        # each process compiles the training step, which may take one of them much longer than another.
        _wait_for_all()
        self.reached()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()


def _environment_has_several() -> bool:
    """Whether the environment says that this process is one of several."""

    def number(name: str) -> int:
        return int(text) if (text := os.environ.get(name, "")).isdigit() else 0

    slurm = "SLURM_STEP_NODELIST" in os.environ and number("SLURM_STEP_NUM_TASKS") > 1
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES", "")
    slices = number("MEGASCALE_NUM_SLICES") > 1
    return slurm or slices or "," in hosts or number("OMPI_COMM_WORLD_SIZE") > 1


def asks_metadata_server() -> bool:
    """Whether JAX asks a metadata server which other hosts belong to this TPU machine."""
    has_tpu = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    on_tpu = has_tpu and importlib.util.find_spec("libtpu") and "tpu" in wanted.split(",")
    # GKE puts the hosts into the environment; TPU_SKIP_MDS_QUERY says that there is no such server.
    known = any(name in os.environ for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return bool(on_tpu) and not known


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    if not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator is {coordinator!r}, expected HOST:PORT, as in 10.0.0.2:8476")
    if num_processes < 1:
        raise InputError(f"--num_processes is {num_processes}, expected a number of at least 1")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id is {process_id}, expected a number from 0 to {num_processes - 1}")


def _wait_for_all() -> None:
    """Waits for all processes, up to _LONGEST_WORK. Uses no device: computations fail after some minutes of waiting."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        everybody = set(range(jax.process_count()))
        multihost.sync_global_processes(f"wroformer:{next(_barriers)}", timeout=_LONGEST_WORK, processes=everybody)


def _all_rows(rows: Shaped[np.ndarray, "local ..."]) -> Shaped[np.ndarray, "all ..."]:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
