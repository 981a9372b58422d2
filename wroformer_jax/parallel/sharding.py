"""Where arrays lie on a mesh (mesh.py): parameters, optimiser state, and batches.

One table decides which axis of a parameter is cut. It goes by the names of the parameter's axes, so that nothing here
needs to know the model.
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

Params = dict[str, Any]  # a nested dict with a leaf per parameter
Index = tuple[slice, ...]  # a device's part of an array

# A parameter is cut along the first of these axes that it has and that the number of parts divides. The long axes of
# the large matrices come first. Parameters without such an axis (gains, biases, gates) are small and stay whole.
_CUT_FIRST = ("mlp", "qkv", "mask_out", "mask_in", "heads", "embed", "band_feature")

_STATE = ("fsdp", "seq")  # the mesh axes that cut parameters and the optimiser's state


def param_shardings(shapes: Params, axes: Params, mesh: Mesh | AbstractMesh) -> Params:
    """Returns the shardings of a model's parameters, a nested dict of `NamedSharding`.

    Args:
      shapes: nested dict of `jax.ShapeDtypeStruct`, as `model.abstract_params` returns it.
      axes: the names of each parameter's axes, as `model.logical_axes` returns them.
      mesh: the devices.
    """
    parts = math.prod(mesh.shape[axis] for axis in _STATE)
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, _spec(leaf.shape, tuple(names), parts)),
        shapes,
        axes,
    )


def mirrored_shardings(tree: Any, params: Params, mesh: Mesh) -> Any:
    """Returns the shardings of the optimiser's state.

    Leaves that mirror a parameter share its sharding. Scalars are replicated.

    Args:
      tree: the state, or its shapes.
      params: the shardings of the parameters.
      mesh: the devices.
    """
    by_name = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(params)}

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        matching = (by_name.get(names[start:]) for start in range(len(names)))
        return next((found for found in matching if found and leaf.ndim), replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def gathered(params: Any, mesh: Mesh) -> Any:
    """Makes every device hold all parameters during a jitted step; their gradients are cut again.

    Without this, XLA decides at each product whether to gather the matrix or to spread the activations. On 256 devices
    it then kept the activations of all examples on each device, which fits no chip (compiled for v5e:16x16).
    """
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), params)


def batch_shardings(mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """Returns the shardings of a batch: its examples (first axis) and samples (last axis) are spread over the mesh."""
    return {
        "mixture": NamedSharding(mesh, PartitionSpec(EXAMPLES, None, SAMPLES)),
        "targets": NamedSharding(mesh, PartitionSpec(EXAMPLES, None, None, SAMPLES)),
    }


def over_examples_and_time(
    local: Callable[[Any, dict[str, Array], Any], Any], mesh: Mesh
) -> Callable[[Any, dict[str, Array], Any], Any]:
    """Runs a function on every device, on the device's part of a batch.

    Args:
      local: takes parameters, a part of a batch, and further parameters. It returns scalars that do not differ
        between the parts of one example.
      mesh: the devices.

    Returns:
      A function of parameters, the whole batch, and further parameters. It returns the scalars' means over the
      examples.
    """

    def mean(*args: Any) -> Any:
        return jax.tree.map(lambda scalar: jax.lax.pmean(scalar, EXAMPLES), local(*args))

    batch = {name: sharding.spec for name, sharding in batch_shardings(mesh).items()}
    whole = PartitionSpec()
    return jax.shard_map(mean, mesh=mesh, in_specs=(whole, batch, whole), out_specs=whole, check_vma=False)


class LocalPart(NamedTuple):
    """The part of a batch that some devices need: a few of its rows, and one range of samples of all of them."""

    rows: tuple[int, ...]  # ascending; they need not be neighbours, even if the devices are
    samples: range  # from the first sample that any of the devices needs to the last


def local_part(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> LocalPart:
    """Returns the part of a batch that this process has to load.

    Args:
      mesh: the devices.
      shape: shape of the mixtures of the whole batch, (batch, channel, sample).
    """
    indices = batch_shardings(mesh)["mixture"].addressable_devices_indices_map(shape).values()
    return part_of([index for index in indices if index is not None], shape)


def part_of(indices: Collection[Index], shape: tuple[int, ...]) -> LocalPart:
    """Returns the part of a batch that some devices need.

    Args:
      indices: each device's part of the mixtures of a batch, as slices.
      shape: shape of these mixtures, (batch, channel, sample).
    """
    rows = {row for index in indices for row in range(*index[0].indices(shape[0]))}
    spans = [index[-1].indices(shape[-1])[:2] for index in indices]
    return LocalPart(tuple(sorted(rows)), range(min(start for start, _ in spans), max(stop for _, stop in spans)))


def to_global(
    batch: Mapping[str, Shaped[np.ndarray, "local ..."]], mesh: Mesh, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Shaped[Array, "batch ..."]]:
    """Makes arrays that span all processes from each process's part of a batch.

    Args:
      batch: "mixture" and "targets" of this process, the rows and samples of `local_part`.
      mesh: the devices.
      shapes: shapes of the whole arrays.
    """
    shardings = batch_shardings(mesh)
    part = local_part(mesh, shapes["mixture"])

    def placed(name: str, array: np.ndarray) -> Array:
        def of_device(index: Index | None) -> np.ndarray:
            assert index is not None  # None would mean another process's device
            first, last, _ = index[0].indices(shapes[name][0])
            start, stop, _ = index[-1].indices(shapes[name][-1])
            row, offset = part.rows.index(first), part.samples.start
            return array[row : row + last - first, ..., start - offset : stop - offset]

        return jax.make_array_from_callback(shapes[name], shardings[name], of_device)

    return {name: placed(name, array) for name, array in batch.items()}


def spread(array: Shaped[np.ndarray, ...], sharding: NamedSharding) -> Shaped[Array, ...]:
    """Lays an array that every process has whole out on the mesh. Each device gets only its part."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that the arrays (or shapes with shardings) of a tree take on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _spec(shape: tuple[int, ...], axes: tuple[str | None, ...], parts: int) -> PartitionSpec:
    if parts > 1:
        for name in _CUT_FIRST:
            if name in axes and shape[axes.index(name)] % parts == 0:
                return PartitionSpec(*(_STATE if axis == name else None for axis in axes))
    return PartitionSpec()


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
