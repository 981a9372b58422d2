"""Converts PyTorch state dicts to parameters and back, bit for bit.

`slots` is the one table. For each key of a public state dict, in order, it gives the leaf of our tree that holds the
tensor, and a NumPy view of that leaf in PyTorch's shape. Loading writes through the views and saving reads through
them, so the two cannot disagree.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.bands import band_layout
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_FREQS = "rotary_embed.freqs"  # suffix of the keys of the rotary frequencies, which a file repeats for every layer


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """The keys of a PyTorch file, in order, and their dtypes: what it takes to write the same file again."""

    dtypes: tuple[tuple[str, str], ...]  # (key, name of the dtype)

    def to_dict(self) -> dict[str, str]:
        """Returns a JSON object from key to dtype, in order."""
        return dict(self.dtypes)

    @classmethod
    def from_dict(cls, fields: Mapping[str, str]) -> TorchLayout:
        """Reads what `to_dict` returned.

        Raises:
          InputError: a dtype is unknown.
        """
        for key, dtype in fields.items():
            if dtype not in DTYPES:
                raise InputError(f"the PyTorch layout gives {key} the unknown dtype {dtype!r}")
        return cls(tuple(fields.items()))


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of a state dict, and its place in our tree.

    Attributes:
      key: the tensor's name in the state dict.
      shape: the tensor's shape in the state dict.
      path: the leaf of our tree that holds it.
      view: returns a view of that leaf with the tensor's elements in the tensor's order.
    """

    key: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    view: Callable[[np.ndarray], np.ndarray]


def slots(config: ModelConfig) -> Iterator[Slot]:
    """Yields a slot for every tensor of the model's public state dict, in the order of that dict."""
    if config.num_sinks:
        shape = (config.num_sinks, config.num_bands, config.dim)
        yield Slot("sink_tokens", shape, ("sink_tokens",), lambda leaf: leaf)
    for block in range(config.depth):
        yield from _transformer_slots(config, block, 0, "time", config.time_transformer_depth)
        yield from _transformer_slots(config, block, 1, "freq", config.freq_transformer_depth)
    if config.band_scheme != "mel":
        yield Slot("final_norm.gamma", (config.dim,), ("final_norm", "gamma"), lambda leaf: leaf)
    yield from _band_split_slots(config)
    yield from _mask_estimator_slots(config)


def from_state_dict(config: ModelConfig, state: dict[str, Any]) -> Params:
    """Converts a state dict of NumPy or torch tensors to parameters.

    Args:
      config: the model's settings.
      state: the state dict. It is emptied on the way, so that its memory is released while ours fills up.

    Returns:
      A nested dict of float32 NumPy arrays.

    Raises:
      InputError: a tensor is missing, unknown, or of another shape than the model's.
    """
    table = list(slots(config))
    _check_keys({key: tuple(tensor.shape) for key, tensor in state.items()}, table)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(RoFormer(config)))
    filled: set[tuple[str, ...]] = set()
    for slot in table:
        values = _to_float32(state.pop(slot.key))
        view = slot.view(_leaf(params, slot.path))
        if slot.key.endswith(_FREQS):
            if slot.path in filled and not np.array_equal(view, values):
                raise InputError(f"{slot.key} differs from the other layers' frequencies, expected one set")
            filled.add(slot.path)
        view[...] = values.reshape(view.shape)
    return params


def to_state_dict(
    config: ModelConfig, params: Mapping[str, Any], layout: TorchLayout | None = None
) -> dict[str, np.ndarray]:
    """Converts parameters to the public state dict.

    Args:
      config: the model's settings.
      params: its parameters.
      layout: gives the dtypes, and the order if it has the same keys; without it float32 in the public order.

    Returns:
      NumPy arrays by key.
    """
    dtypes = dict(layout.dtypes) if layout else {}
    state = {}
    for slot in slots(config):
        values = slot.view(np.asarray(_leaf(params, slot.path))).reshape(slot.shape)
        dtype = DTYPES[dtypes.get(slot.key, "float32")]
        # Neither safetensors nor torch can write a transposed view, so each tensor is a contiguous copy.
        state[slot.key] = np.array(values, dtype=dtype, order="C")
    if set(dtypes) == set(state):
        state = {key: state[key] for key in dtypes}
    return state


def _transformer_slots(config: ModelConfig, block: int, axis: int, name: str, depth: int) -> Iterator[Slot]:
    """Yields the slots of one transformer of a block: axis 0 is "time", axis 1 is "freq"."""
    dim, inner, wide = config.dim, config.heads * config.dim_head, config.dim_feed_forward
    for j in range(depth):
        layer = f"layers.{block}.{axis}.layers.{j}"
        attention, feed_forward = ("blocks", name, f"mixer_{j}"), ("blocks", name, f"feed_forward_{j}")
        yield Slot(f"{layer}.0.{_FREQS}", (config.dim_head // 2,), (f"{name}_rotary", "freqs"), lambda leaf: leaf)
        for key, shape, path in (
            ("0.norm.gamma", (dim,), (*attention, "norm", "gamma")),
            ("0.to_qkv.weight", (3 * inner, dim), (*attention, "to_qkv", "kernel")),
            ("0.to_gates.weight", (config.heads, dim), (*attention, "to_gates", "kernel")),
            ("0.to_gates.bias", (config.heads,), (*attention, "to_gates", "bias")),
            ("0.to_out.0.weight", (dim, inner), (*attention, "to_out", "kernel")),
            ("1.net.0.gamma", (dim,), (*feed_forward, "norm", "gamma")),
            ("1.net.1.weight", (wide, dim), (*feed_forward, "up", "kernel")),
            ("1.net.1.bias", (wide,), (*feed_forward, "up", "bias")),
            ("1.net.4.weight", (dim, wide), (*feed_forward, "down", "kernel")),
            ("1.net.4.bias", (dim,), (*feed_forward, "down", "bias")),
        ):
            # A Linear's weight is (out, in) in PyTorch, its kernel (in, out) here. A vector's .T is itself.
            yield Slot(f"{layer}.{key}", shape, path, lambda leaf: leaf[block].T)
    if config.band_scheme == "mel":
        path = ("blocks", name, "norm", "gamma")
        yield Slot(f"layers.{block}.{axis}.norm.gamma", (dim,), path, lambda leaf: leaf[block])


def _band_rows(config: ModelConfig) -> list[tuple[int, str, int, int, int]]:
    """Returns (band, name of its group, row in the group, number of bins, padded width of the group) of each band."""
    layout = band_layout(config)
    return [
        (band, f"group_{g}", row, len(layout.bins[band]), group.width)
        for g, group in enumerate(layout.groups)
        for row, band in enumerate(group.bands)
    ]


def _band_split_slots(config: ModelConfig) -> Iterator[Slot]:
    planes, dim = 2 * config.channels, config.dim
    for band, group, row, bins, width in _band_rows(config):
        key, path = f"band_split.to_features.{band}", ("band_split", group)

        # A band's features are bin-major in PyTorch and plane-major here: the views swap the two axes.
        def gamma(leaf, row=row, bins=bins, width=width):
            return leaf[row].reshape(planes, width)[:, :bins].T

        def kernel(leaf, row=row, bins=bins, width=width):
            return leaf[row].reshape(planes, width, dim)[:, :bins].transpose(2, 1, 0)

        yield Slot(f"{key}.0.gamma", (planes * bins,), (*path, "gamma"), gamma)
        yield Slot(f"{key}.1.weight", (dim, planes * bins), (*path, "kernel"), kernel)
        yield Slot(f"{key}.1.bias", (dim,), (*path, "bias"), lambda leaf, row=row: leaf[row])


def _mask_estimator_slots(config: ModelConfig) -> Iterator[Slot]:
    planes, sizes = 2 * config.channels, [config.dim] + [config.dim_mask] * (config.mask_layers - 1)
    rows = _band_rows(config)
    for stem, (band, group, row, bins, width) in itertools.product(range(config.num_stems), rows):
        key = f"mask_estimators.{stem}.to_freqs.{band}.0"

        def hidden(leaf, stem=stem, band=band):
            return leaf[stem, band].T

        def out(leaf, stem=stem, row=row, bins=bins, width=width):
            # ([hidden,] value or gate, plane, bin) -> (value or gate, bin, plane [, hidden])
            unpadded = leaf[stem, row].reshape(*leaf.shape[2:-1], 2, planes, width)[..., :bins]
            return np.moveaxis(unpadded, (-3, -1, -2), (0, 1, 2))

        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            path = ("mask_estimator", f"hidden_{i}")
            yield Slot(f"{key}.{2 * i}.weight", (fan_out, fan_in), (*path, "kernel"), hidden)
            yield Slot(f"{key}.{2 * i}.bias", (fan_out,), (*path, "bias"), hidden)
        path, size, last = ("mask_estimator", group, "out"), 2 * planes * bins, 2 * len(sizes) - 2
        yield Slot(f"{key}.{last}.weight", (size, sizes[-1]), (*path, "kernel"), out)
        yield Slot(f"{key}.{last}.bias", (size,), (*path, "bias"), out)


def _check_keys(shapes: Mapping[str, tuple[int, ...]], table: list[Slot]) -> None:
    expected = {slot.key: slot.shape for slot in table}
    for found, what in (
        ([key for key in expected if key not in shapes], "lacks"),
        ([key for key in shapes if key not in expected], "has the unknown"),
    ):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(f"{what} {', '.join(found[:3])}{more}: not a whole model of this family")
    for key, shape in expected.items():
        if shapes[key] != shape:
            raise InputError(f"{key} has the shape {shapes[key]}, expected {shape}")


def _to_float32(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32, copy=False)
    return tensor.detach().float().numpy()


def _leaf(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        params = params[name]
    return params
