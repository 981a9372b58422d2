"""PyTorch state dicts to parameters and back, bit for bit.

`slots` is the one table: for each key of a public state dict, in its order, the leaf of our tree that holds it and a
NumPy view of that leaf in PyTorch's shape. Loading writes through the views, saving reads through them, so the two
cannot disagree. Files are read without running code from them. Torch is imported for torch's own files only.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from wroformer_jax.checkpoints.torch_config import complete_settings, read_yaml
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.files import disk_errors_named, replacing
from wroformer_jax.model.bands import band_layout
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer

log = logging.getLogger("wroformer")

# Where training programs put the weights in what they save.
_WRAPPERS = ("state_dict", "state", "model_state_dict", "model")
# What wrappers such as DistributedDataParallel, Lightning and torch.compile put before every key.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_FREQS = "rotary_embed.freqs"  # ends the keys of the constants, which every layer of a file repeats
# How torch's messages say that a pickle wanted more than tensors.
_CODE_REFUSED = ("GLOBAL", "Unsupported global", "Unsupported class", "unrecognized function")
_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """Keys, in their order, and dtypes of the file that weights came from: what it takes to write it again."""

    dtypes: tuple[tuple[str, str], ...]  # (key, dtype name)

    def to_dict(self) -> dict[str, str]:
        """A JSON object from key to dtype, in order."""
        return dict(self.dtypes)

    @classmethod
    def from_dict(cls, fields: Mapping[str, str]) -> TorchLayout:
        """Reads `to_dict` back."""
        for key, dtype in fields.items():
            if dtype not in _DTYPES:
                raise InputError(f"the PyTorch layout gives {key} the unknown dtype {dtype!r}")
        return cls(tuple(fields.items()))


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of a state dict.

    Attributes:
      key: its name there.
      shape: its shape there.
      path: the leaf of our tree that holds it.
      view: from that leaf to a view whose elements are the tensor's, in the tensor's order.
    """

    key: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    view: Callable[[np.ndarray], np.ndarray]


def slots(config: ModelConfig) -> Iterator[Slot]:
    """Every tensor of the public state dict of this model, in its order."""
    dim, inner, mel = config.dim, config.heads * config.dim_head, config.band_scheme == "mel"
    if config.num_sinks:
        shape = (config.num_sinks, config.num_bands, dim)
        yield Slot("sink_tokens", shape, ("sink_tokens",), lambda leaf: leaf)
    for i in range(config.depth):
        for axis, (name, depth) in enumerate(
            (("time", config.time_transformer_depth), ("freq", config.freq_transformer_depth))
        ):
            for j in range(depth):
                layer, ours = f"layers.{i}.{axis}.layers.{j}", ("blocks", name)
                attention, feed_forward = (*ours, f"mixer_{j}"), (*ours, f"feed_forward_{j}")
                yield Slot(
                    f"{layer}.0.rotary_embed.freqs",
                    (config.dim_head // 2,),
                    (f"{name}_rotary", "freqs"),
                    lambda leaf: leaf,
                )
                for key, shape, path in (
                    ("0.norm.gamma", (dim,), (*attention, "norm", "gamma")),
                    ("0.to_qkv.weight", (3 * inner, dim), (*attention, "to_qkv", "kernel")),
                    ("0.to_gates.weight", (config.heads, dim), (*attention, "to_gates", "kernel")),
                    ("0.to_gates.bias", (config.heads,), (*attention, "to_gates", "bias")),
                    ("0.to_out.0.weight", (dim, inner), (*attention, "to_out", "kernel")),
                    ("1.net.0.gamma", (dim,), (*feed_forward, "norm", "gamma")),
                    ("1.net.1.weight", (config.dim_feed_forward, dim), (*feed_forward, "up", "kernel")),
                    ("1.net.1.bias", (config.dim_feed_forward,), (*feed_forward, "up", "bias")),
                    ("1.net.4.weight", (dim, config.dim_feed_forward), (*feed_forward, "down", "kernel")),
                    ("1.net.4.bias", (dim,), (*feed_forward, "down", "bias")),
                ):
                    # A Linear's weight is (out, in) in PyTorch, its kernel (in, out) here; a vector's .T is itself.
                    yield Slot(f"{layer}.{key}", shape, path, lambda leaf, i=i: leaf[i].T)
            if mel:
                yield Slot(
                    f"layers.{i}.{axis}.norm.gamma",
                    (dim,),
                    ("blocks", name, "norm", "gamma"),
                    lambda leaf, i=i: leaf[i],
                )
    if not mel:
        yield Slot("final_norm.gamma", (dim,), ("final_norm", "gamma"), lambda leaf: leaf)
    yield from _band_slots(config)


def num_parameters(config: ModelConfig) -> int:
    """Trained parameters of a model: no padding of narrow bands, and not the constants of the rotary embedding."""
    return sum(math.prod(slot.shape) for slot in slots(config) if not slot.key.endswith(_FREQS))


def _band_slots(config: ModelConfig) -> Iterator[Slot]:
    layout, planes, dim = band_layout(config), 2 * config.channels, config.dim
    # (band, its group's name, its row in the group, its bins, the group's padded width)
    places = [
        (band, f"group_{g}", row, len(layout.bins[band]), group.width)
        for g, group in enumerate(layout.groups)
        for row, band in enumerate(group.bands)
    ]
    # A band's features are bin-major in PyTorch and plane-major here: the views swap the two axes.
    for band, group, row, bins, width in places:
        key, path = f"band_split.to_features.{band}", ("band_split", group)

        def gamma(leaf, row=row, bins=bins, width=width):
            return leaf[row].reshape(planes, width)[:, :bins].T

        def kernel(leaf, row=row, bins=bins, width=width):
            return leaf[row].reshape(planes, width, dim)[:, :bins].transpose(2, 1, 0)

        yield Slot(f"{key}.0.gamma", (planes * bins,), (*path, "gamma"), gamma)
        yield Slot(f"{key}.1.weight", (dim, planes * bins), (*path, "kernel"), kernel)
        yield Slot(f"{key}.1.bias", (dim,), (*path, "bias"), lambda leaf, row=row: leaf[row])

    sizes = [dim] + [config.dim_mask] * (config.mask_layers - 1)
    for stem in range(config.num_stems):
        for band, group, row, bins, width in places:
            key = f"mask_estimators.{stem}.to_freqs.{band}.0"
            for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
                path = ("mask_estimator", f"hidden_{i}")

                def hidden(leaf, stem=stem, band=band):
                    return leaf[stem, band].T

                yield Slot(f"{key}.{2 * i}.weight", (fan_out, fan_in), (*path, "kernel"), hidden)
                yield Slot(f"{key}.{2 * i}.bias", (fan_out,), (*path, "bias"), hidden)

            def out(leaf, stem=stem, row=row, bins=bins, width=width):
                # ([hidden,] value or gate, plane, place) -> (value or gate, bin, plane [, hidden])
                places = leaf[stem, row].reshape(*leaf.shape[2:-1], 2, planes, width)[..., :bins]
                return np.moveaxis(places, (-3, -1, -2), (0, 1, 2))

            path, size, last = ("mask_estimator", group, "out"), 2 * planes * bins, 2 * len(sizes) - 2
            yield Slot(f"{key}.{last}.weight", (size, sizes[-1]), (*path, "kernel"), out)
            yield Slot(f"{key}.{last}.bias", (size,), (*path, "bias"), out)


def load_torch(
    path: str | os.PathLike, config: str | os.PathLike | ModelConfig | None = None
) -> tuple[ModelConfig, Params, TorchLayout]:
    """Reads a PyTorch checkpoint (.ckpt, .pt, .pth, .th) or a .safetensors file.

    Sizes are read off the weights and held against `config`; what the weights cannot tell (hop, sample rate, window,
    names of the stems) comes from `config`, or from the published models' values, which is then logged.

    Args:
      path: the file: a bare state dict, or one nested under a usual key, with or without a usual prefix.
      config: a YAML file in the dialect that public checkpoints come with, or a ModelConfig.

    Returns:
      The model's config, its parameters as float32 NumPy arrays, and the layout to write the file again.

    Raises:
      InputError: the file cannot be read safely, or does not hold a model of this family, or contradicts `config`.
    """
    path = Path(path)
    state = _unwrap(_read(path), path)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    given = read_yaml(config) if isinstance(config, str | os.PathLike) else config
    resolved = complete_settings(shapes, given, path)

    layout = TorchLayout(tuple((key, _dtype_name(tensor, key, path)) for key, tensor in state.items()))
    if doubles := sum(dtype == "float64" for _, dtype in layout.dtypes):
        log.warning("%s: %d tensors are float64 and are rounded to float32: they cannot be had back", path, doubles)
    try:
        params = from_state_dict(resolved, state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return resolved, params, layout


def save_torch(path: str | Path, config: ModelConfig, params: Params, layout: TorchLayout | None = None) -> None:
    """Writes a state dict with the public key names; the file appears only when whole.

    Args:
      path: .ckpt, .pt, .pth or .th for torch.save, or .safetensors.
      config: the model's config.
      params: its parameters.
      layout: order and dtypes, as `load_torch` gave them; float32 in the public order without it.

    Raises:
      InputError: the suffix is unknown, torch is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"{path}: expected a name ending in {', '.join(CHECKPOINT_SUFFIXES)}")
    torch = _import_torch(path) if path.suffix in PICKLE_SUFFIXES else None
    state = to_state_dict(config, params, layout)
    with disk_errors_named(path), replacing(path) as temporary:
        if torch is None:
            from safetensors.numpy import save_file

            save_file(state, temporary)
        else:
            torch.save({key: _to_tensor(torch, value) for key, value in state.items()}, temporary)


def from_state_dict(config: ModelConfig, state: dict[str, Any]) -> Params:
    """Parameters, as float32 NumPy arrays, from a state dict of NumPy or torch tensors, which is emptied.

    Emptied, so that its memory is given back while ours fills up.

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


def to_state_dict(config: ModelConfig, params: Params, layout: TorchLayout | None = None) -> dict[str, np.ndarray]:
    """The public state dict as NumPy arrays, in the layout's order and dtypes."""
    dtypes = dict(layout.dtypes) if layout else {}
    state = {}
    for slot in slots(config):
        values = slot.view(np.asarray(_leaf(params, slot.path))).reshape(slot.shape)
        dtype = _DTYPES[dtypes.get(slot.key, "float32")]
        # Always a copy of its own: neither writer takes a transposed view.
        state[slot.key] = np.array(values, dtype=dtype, order="C")
    if set(dtypes) == set(state):
        state = {key: state[key] for key in dtypes}
    return state


def _read(path: Path) -> Any:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"{path}: not a checkpoint's name, expected one ending in {', '.join(CHECKPOINT_SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as safetensors, is it whole? ({_one_line(error)})") from error


def _read_torch(path: Path) -> Any:
    import pickle

    torch = _import_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _CODE_REFUSED):
            raise InputError(
                f"{path}: holds more than tensors (a pickle with code in it), which is not run: "
                "save the bare state_dict instead"
            ) from error
        raise InputError(f"{path}: not a whole PyTorch checkpoint (its pickle cannot be read)") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not a whole PyTorch checkpoint ({_one_line(error)})") from error


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: needs PyTorch, which is not installed: pip install 'wroformer-jax[torch]', "
            "or use a .safetensors file"
        ) from error
    return torch


def _unwrap(loaded: Any, path: Path) -> dict[str, Any]:
    """The state dict inside what was saved, its keys without the wrappers' prefixes."""
    # The wrapper is looked for first: tensors may stand beside the weights, a step count for example.
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(hasattr(value, "shape") for value in loaded.values()):
        found = (
            f"keys {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        )
        raise InputError(
            f"{path}: no state dict found (found {found or 'nothing'}), expected tensors by name, bare or under "
            f"{', '.join(_WRAPPERS)}"
        )
    state = {str(key): value for key, value in loaded.items() if hasattr(value, "shape")}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


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


def _dtype_name(tensor: Any, key: str, path: Path) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"{path}: {key} has the dtype {name}, expected one of {', '.join(_DTYPES)}")
    return name


def _to_float32(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32, copy=False)
    return tensor.detach().float().numpy()


def _to_tensor(torch: Any, values: np.ndarray) -> Any:
    if values.dtype == ml_dtypes.bfloat16:  # torch does not know ml_dtypes: hand over the bits
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _leaf(params: Params, path: tuple[str, ...]) -> Any:
    for name in path:
        params = params[name]
    return params


def _one_line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 160 else first[:157] + "..."


PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".th")  # written by torch.save


CHECKPOINT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")
