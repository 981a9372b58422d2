"""Where arrays live on many devices: the mesh, and one table from the names of axes to its axes.

The mesh has three axes. `data` holds copies of the model, each with examples of its own; `fsdp` holds parts of the
parameters and of the optimiser's state, each device with examples of its own, too; `seq` holds parts of each example's
time, and more parts of the state. This file decides what is cut over them: parameters come with the logical axes of
`model.logical_axes` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from wroformer_jax.parallel.mesh import EXAMPLES, SAMPLES

Params = dict[str, Any]  # nested, a leaf for each parameter

# Which axis of a parameter is cut over `fsdp`: the first of these that it has and that divides. The long axes of the
# large matrices come first; what has none that divides (gains, biases, gates) is small and stays whole.
_CUT_FIRST = ("mlp", "qkv", "mask_out", "mask_in", "heads", "embed", "band_feature")

_STATE = ("fsdp", "seq")  # what parameters and the optimiser's state are cut over


def param_shardings(shapes: Params, axes: Params, mesh: Mesh | AbstractMesh) -> Params:
    """Shardings of a model's parameters.

    Args:
      shapes: nested dict of `jax.ShapeDtypeStruct`, as `model.abstract_params` returns it.
      axes: the names of each parameter's axes, as `model.logical_axes` returns them.
      mesh: the devices.

    Returns:
      A nested dict of `NamedSharding`.
    """
    parts = math.prod(mesh.shape[axis] for axis in _STATE)
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, _spec(leaf.shape, tuple(names), parts)),
        shapes,
        axes,
    )


def mirrored_shardings(tree: Any, params: Params, mesh: Mesh) -> Any:
    """How an optimiser's state lies: what mirrors a parameter lies as it does, counters are on every device.

    Args:
      tree: the state, or its shapes.
      params: the shardings of the parameters.
      mesh: the mesh.
    """
    by_name = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(params)}

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        matching = (by_name.get(names[start:]) for start in range(len(names)))
        return next((found for found in matching if found and leaf.ndim), replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def gathered(params: Any, mesh: Mesh) -> Any:
    """Parameters whole on every device for the length of a jitted step; their gradients are cut again.

    Left to itself, XLA weighs gathering a matrix against spreading activations differently at each product. On 256
    devices it then keeps activations of all examples on each, which fits no chip (compiled for v5e:16x16).
    """
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), params)


def batch_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    """How the arrays of a batch lie: examples, the first axis, and samples, the last one, spread over the devices."""
    return {
        "mixture": NamedSharding(mesh, PartitionSpec(EXAMPLES, None, SAMPLES)),
        "targets": NamedSharding(mesh, PartitionSpec(EXAMPLES, None, None, SAMPLES)),
    }


def over_examples_and_time(
    local: Callable[[Any, dict[str, Array], Any], Any], mesh: Mesh
) -> Callable[[Any, dict[str, Array], Any], Any]:
    """A function of parameters, a batch and more parameters, on every device of its own part of the batch.

    Args:
      local: gives scalars that are the same for all parts of an example's time.
      mesh: the devices.

    Returns:
      A function of the whole batch: the scalars' means over the examples.
    """

    def mean(*args: Any) -> Any:
        return jax.tree.map(lambda scalar: jax.lax.pmean(scalar, EXAMPLES), local(*args))

    batch = {name: sharding.spec for name, sharding in batch_shardings(mesh).items()}
    whole = PartitionSpec()
    return jax.shard_map(mean, mesh=mesh, in_specs=(whole, batch, whole), out_specs=whole, check_vma=False)


class LocalPart(NamedTuple):
    """What of every batch the devices of this process need: some of its rows, and of these a stretch of time."""

    rows: tuple[int, ...]  # ascending; neighbours in a torus need not hold neighbouring rows
    samples: range  # from the first that one of the devices needs to the last


def local_part(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> LocalPart:
    """The part of a batch that this process has to load.

    Args:
      mesh: the devices.
      shape: of the mixtures of a batch, (batch, channel, sample), all devices together.
    """
    return part_of(batch_shardings(mesh)["mixture"].addressable_devices_indices_map(shape).values(), shape)


def part_of(indices: Collection[tuple[slice, ...]], shape: tuple[int, ...]) -> LocalPart:
    """What has to be loaded for some devices.

    Args:
      indices: of each device, its part of the mixtures of a batch, as slices.
      shape: of these mixtures, (batch, channel, sample).
    """
    rows = {row for index in indices for row in range(*index[0].indices(shape[0]))}
    stretches = [index[-1].indices(shape[-1])[:2] for index in indices]
    return LocalPart(
        tuple(sorted(rows)), range(min(start for start, _ in stretches), max(stop for _, stop in stretches))
    )


def to_global(
    batch: Mapping[str, Shaped[np.ndarray, "local ..."]], mesh: Mesh, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Shaped[Array, "batch ..."]]:
    """This process's part of a batch as its part of arrays that span all processes.

    Args:
      batch: "mixture" and "targets", of the rows and samples of `local_part`.
      mesh: the devices.
      shapes: of the whole arrays.
    """
    shardings = batch_shardings(mesh)
    part = local_part(mesh, shapes["mixture"])

    def placed(name: str, array: np.ndarray) -> Array:
        def piece(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(shapes[name][0])
            start, stop, _ = index[-1].indices(shapes[name][-1])
            row, offset = part.rows.index(first), part.samples.start
            return array[row : row + last - first, ..., start - offset : stop - offset]

        return jax.make_array_from_callback(shapes[name], shardings[name], piece)

    return {name: placed(name, array) for name, array in batch.items()}


def spread(array: Shaped[np.ndarray, ...], sharding: NamedSharding) -> Shaped[Array, ...]:
    """An array that every process has whole, laid out on the mesh; each device gets its part only."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])


def bytes_per_device(tree: Any) -> int:
    """What the arrays (or shapes with shardings) of a tree take on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _spec(shape: tuple[int, ...], axes: tuple[str | None, ...], parts: int) -> PartitionSpec:
    if parts > 1:
        for name in _CUT_FIRST:
            if name in axes and shape[axes.index(name)] % parts == 0:
                return PartitionSpec(*(_STATE if axis == name else None for axis in axes))
    return PartitionSpec()


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
