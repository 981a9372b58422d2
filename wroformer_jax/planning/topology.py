"""TPU slices that programs can be compiled for without having them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from wroformer_jax.errors import InputError
from wroformer_jax.parallel.hardware import hardware

# What libtpu is told where nothing else is: to ask no TPU for its metadata, which takes minutes where there is none;
# what it would have said, so that it does not complain; and that it may run beside others, which it does not disturb,
# since it only compiles.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16"

# The usual slices of Google Cloud, by generation: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x.
TOPOLOGIES = {
    "v4": _CUBES.split(),
    "v5e": _FLAT.split(),
    "v5p": f"{_CUBES} 16x16x24".split(),
    "v6e": _FLAT.split(),
    "tpu7x": _CUBES.split(),
}


class Target(NamedTuple):
    """What to compile for."""

    name: str
    devices: Sequence[Any]
    memory: int | None  # bytes that a program may use on each device, None if nothing tells
    is_topology: bool = False  # of devices that need not be there


def topology(name: str) -> Target:
    """The slice of a name such as "v5e:4x4": a generation, and its chips along each side. JAX is not told to use it.

    Needs libtpu, which compiles for every generation on a CPU.

    Raises:
      InputError: there is no such slice, or no libtpu.
    """
    generation, _, shape = name.partition(":")
    if shape not in TOPOLOGIES.get(generation, ()):
        raise InputError(f"there is no topology {name!r}. {known_topologies()}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"compiling for TPUs needs libtpu, which is not installed: pip install --no-deps '{_wanted_libtpu()}'"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if generation == "v4":  # both cores of a chip as one device, as JAX has them on such a chip
        options["chip_config_name"] = "megacore"
    if shape == "1x1":  # a quarter of a host
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"libtpu cannot compile for {name}: {str(error).splitlines()[0]}") from error
    return Target(name, devices, _memory_of_topology(devices[0]), is_topology=True)


def local_devices() -> Target:
    """The devices of this machine."""
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    return Target(f"local {devices[0].platform.upper()}", devices, stats.get("bytes_limit"))


def known_topologies() -> str:
    """A sentence with the names of all topologies."""
    named = "; ".join(f"{generation}: {', '.join(shapes)}" for generation, shapes in TOPOLOGIES.items())
    return f"A name is GENERATION:SHAPE, as in v5e:4x4; there are {named}"


def out_of_memory(error: Exception) -> tuple[int | None, int | None] | None:
    """Bytes that a program needs on a device and bytes that it may use, of XLA's refusal to compile it.

    Returns:
      None if the error is another one; None in a place for a number that it does not tell.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (rf"Used {number}i?B? of {number}i?B? hbm", rf"\({number}\) exceeds available HBM \({number}\)"):
        if found := re.search(pattern, text):
            units = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
            used, limit = ((float(found[i]), units[found[i + 1]]) for i in (1, 3))
            return int(used[0] * 2 ** used[1]), int(limit[0] * 2 ** limit[1])
    return None, None


def _memory_of_topology(device: Any) -> int | None:
    """What XLA lets a program use of a device's memory: it says so when it refuses one that is surely too large."""
    known = hardware(device.device_kind)
    too_large = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        numbers = out_of_memory(error)
        if numbers and numbers[1]:
            return numbers[1]
    return int(known.hbm) if known else None


def _wanted_libtpu() -> str:
    """The release of libtpu that goes with the installed JAX, as pip takes it."""
    wanted = (re.match(r"libtpu\s*([=<>~!][^;\s]*)", line) for line in importlib.metadata.requires("jax") or ())
    return next((f"libtpu{found[1]}" for found in wanted if found), "libtpu")
