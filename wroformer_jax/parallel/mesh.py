"""Meshes of devices: how one is made, and how many parts it cuts a batch into.

A mesh has three axes. Along `data` lie copies of the model, each with its own examples. Along `fsdp` lie parts of the
parameters and of the optimiser's state; each of these devices has its own examples, too. Along `seq` lie parts of each
example's time, and further parts of the state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from wroformer_jax.config.training import MESH_AXES
from wroformer_jax.errors import InputError

EXAMPLES = ("data", "fsdp")  # the mesh axes that cut the first axis of a batch, its examples
SAMPLES = "seq"  # the mesh axis that cuts the last axis of a batch, its samples

Shape = tuple[int, int, int]  # devices along "data", "fsdp" and "seq"


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh of a run.

    Args:
      sizes: number of devices along "data", "fsdp" and "seq"; one of them may be -1, which means the rest.
      devices: the devices; those of all processes by default.

    Raises:
      InputError: the product of the sizes is not the number of devices, or parts of one model would lie on several
        slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _filled(sizes, len(devices))
    return Mesh(arrange_devices(shape, devices), MESH_AXES)


def arrange_devices(shape: Shape, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices in the shape of a mesh.

    On TPUs, neighbours in the mesh are neighbours in the torus where possible. Slices are connected by a slow network,
    so each slice gets whole copies of the model.

    Raises:
      InputError: the size of "data" is no multiple of the number of slices.
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
    """Returns the number of parts that the time of an example is cut into."""
    return mesh.shape[SAMPLES]


def devices_mesh(devices: Sequence[Any]) -> Mesh:
    """Makes a mesh that cuts time over the devices, and nothing else."""
    return make_mesh({"data": 1, "fsdp": 1, "seq": len(devices)}, devices)


def num_example_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts that the examples of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in EXAMPLES)


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh, *, accumulate: int = 1) -> None:
    """Raises an InputError if the examples of an optimiser step do not divide over the mesh."""
    parts = num_example_shards(mesh)
    if batch_size % (parts * accumulate):
        said = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in EXAMPLES)
        passes = f" and optimizer.accumulate={accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"batch_size is {batch_size}, which does not divide over the mesh ({said}{passes}): expected a multiple of "
            f"{parts * accumulate}"
        )


def _filled(sizes: Mapping[str, int], num_devices: int) -> Shape:
    """Returns the sizes along MESH_AXES, with the -1 replaced by the number of the remaining devices."""
    shape = [sizes[axis] for axis in MESH_AXES]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if shape.count(-1) > 1:
        raise InputError(f"mesh is {said}: only one axis can be -1, which means the rest of the devices")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and num_devices % known == 0:
        shape[shape.index(-1)] = num_devices // known
    if math.prod(shape) != num_devices:
        needed = f"a multiple of {known} devices" if -1 in shape else f"{known} devices"
        divisors = ", ".join(str(size) for size in range(1, num_devices + 1) if num_devices % size == 0)
        raise InputError(
            f"mesh is {said}, which takes {needed}, but there are {num_devices}: sizes that divide them are {divisors}"
            f"{'' if -1 in shape or num_devices % known else '; one axis may be -1, for all remaining devices'}"
        )
    data, fsdp, seq = shape
    return data, fsdp, seq
