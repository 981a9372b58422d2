"""Devices to compile for: TPU slices that need not exist, or those of this machine."""

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
from wroformer_jax.parallel.hardware import known_hardware

# Defaults for libtpu. It must not query a TPU's metadata server, which takes minutes where there is none, and needs the
# answers instead. It may run beside other processes that use libtpu, since it only compiles.
LIBTPU_ENVIRONMENT = {
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
    """Devices to compile for."""

    name: str
    devices: Sequence[Any]
    memory: int | None  # bytes that a program may use on each device, None if unknown
    is_topology: bool = False  # True if the devices need not exist


def find_topology(name: str) -> Target:
    """Returns the slice with a name such as "v5e:4x4": a generation, and the number of chips along each side.

    This needs libtpu, which compiles for every generation on a CPU. JAX's own devices stay as they are.

    Raises:
      InputError: the name is unknown, or libtpu is not installed or refuses it.
    """
    generation, _, shape = name.partition(":")
    if shape not in TOPOLOGIES.get(generation, ()):
        raise InputError(f"there is no topology {name!r}. {known_topologies()}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"compiling for TPUs needs libtpu, which is not installed: pip install --no-deps '{_wanted_libtpu()}'"
        )
    for variable, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if generation == "v4":  # JAX has both cores of a v4 chip as one device
        options["chip_config_name"] = "megacore"
    if shape == "1x1":  # a quarter of a host
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"libtpu cannot compile for {name}: {str(error).splitlines()[0]}") from error
    return Target(name, devices, _memory_of_topology(devices[0]), is_topology=True)


def local_devices() -> Target:
    """Returns the devices of this machine."""
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    return Target(f"local {devices[0].platform.upper()}", devices, stats.get("bytes_limit"))


def known_topologies() -> str:
    """Returns a sentence with the names of all topologies."""
    named = "; ".join(f"{generation}: {', '.join(shapes)}" for generation, shapes in TOPOLOGIES.items())
    return f"A name is GENERATION:SHAPE, as in v5e:4x4; there are {named}"


def out_of_memory(error: Exception) -> tuple[int | None, int | None] | None:
    """Returns the bytes that a program needs on a device and those that it may use, from XLA's refusal to compile it.

    Returns:
      None if the error is another one. A number that the message does not have is None.
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
    """Returns the bytes that XLA lets a program use on a device; it names them when it refuses a huge program."""
    known = known_hardware(device.device_kind)
    too_large = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        numbers = out_of_memory(error)
        if numbers and numbers[1]:
            return numbers[1]
    return int(known.hbm) if known else None


def _wanted_libtpu() -> str:
    """Returns the requirement for the libtpu that goes with the installed JAX, for pip."""
    wanted = (re.match(r"libtpu\s*([=<>~!][^;\s]*)", line) for line in importlib.metadata.requires("jax") or ())
    return next((f"libtpu{found[1]}" for found in wanted if found), "libtpu")
