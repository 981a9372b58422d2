"""The mesh of devices and the sizes of its axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from wroformer_jax.config.training import MESH_AXES
from wroformer_jax.errors import InputError

EXAMPLES = ("data", "fsdp")  # what the first axis of a batch is cut over


SAMPLES = "seq"  # what the last axis of a batch, its samples, is cut over


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run.

    Args:
      sizes: devices along "data", "fsdp" and "seq"; one of them may be -1, the rest of the devices.
      devices: all of all hosts by default.

    Raises:
      InputError: the sizes do not come out at the number of devices, or parts of the model would lie on several slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _filled(sizes, len(devices))
    return Mesh(arrange_devices(shape, devices), MESH_AXES)


def arrange_devices(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the shape of a mesh; on TPUs so that neighbours in it are neighbours in the torus, where that can be.

    Of several slices, which are joined by a slow network, each has copies of the whole model.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    from jax.experimental import mesh_utils

    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, *rest = shape
    if data % slices:
        raise InputError(
            f"mesh.data is {data}, which does not divide over {slices} slices: expected a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *rest), (slices, *(1 for _ in rest)), devices, allow_split_physical_axes=True
    )


def num_time_parts(mesh: Mesh | AbstractMesh) -> int:
    """How many parts the time of an example is cut into."""
    return mesh.shape[SAMPLES]


def devices_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh that cuts time over devices, and nothing else."""
    return make_mesh({"data": 1, "fsdp": 1, "seq": len(devices)}, devices)


def num_example_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many parts a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in EXAMPLES)


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh, *, accumulate: int = 1) -> None:
    """Raises an InputError if the examples of a step do not divide over the mesh."""
    parts = num_example_shards(mesh)
    if batch_size % (parts * accumulate):
        said = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in EXAMPLES)
        steps = f" and accumulate={accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"batch_size is {batch_size}, which does not divide over the mesh ({said}{steps}): expected a multiple of "
            f"{parts * accumulate}"
        )


def _filled(sizes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
    """The sizes along MESH_AXES, with the -1 replaced."""
    shape = [sizes[axis] for axis in MESH_AXES]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if shape.count(-1) > 1:
        raise InputError(f"mesh is {said}: only one axis can be -1, which means the rest of the devices")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and num_devices % known == 0:
        shape[shape.index(-1)] = num_devices // known
    if math.prod(shape) != num_devices:
        needed = f"a multiple of {known} devices" if -1 in shape else f"{known} devices"
        sizes = ", ".join(str(size) for size in range(1, num_devices + 1) if num_devices % size == 0)
        raise InputError(
            f"mesh is {said}, which takes {needed}, but there are {num_devices}: sizes that divide them are {sizes}"
            f"{'' if -1 in shape or num_devices % known else '; one axis may be -1, the rest of them'}"
        )
    return tuple(shape)
