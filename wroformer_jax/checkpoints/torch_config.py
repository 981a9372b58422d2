"""Derives a model's config from the shapes of PyTorch weights and whatever settings came with them."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wroformer_jax.checkpoints.torch_yaml import YamlSettings, fields_of_yaml
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.bands import band_layout

# Fields that cannot be read off the weights. The defaults of ModelConfig are the published models' values.
_ASSUMED = ("sample_rate", "stft_n_fft", "stft_hop_length", "stft_win_length")

_log = logging.getLogger("wroformer")


def complete_config(
    shapes: Mapping[str, tuple[int, ...]], given: YamlSettings | ModelConfig | None, path: Path
) -> ModelConfig:
    """Joins the sizes of the weights with the given settings; fields in neither get the published models' values.

    Args:
      shapes: the state dict's keys and shapes.
      given: the checkpoint's YAML, a config, or nothing.
      path: the checkpoint, for messages.

    Raises:
      InputError: the weights are of another family, or contradict the given settings.
    """
    try:
        return _completed(shapes, given, path)
    except InputError as error:
        raise (error if str(path) in str(error) else InputError(f"{path}: {error}")) from error


def _completed(
    shapes: Mapping[str, tuple[int, ...]], given: YamlSettings | ModelConfig | None, path: Path
) -> ModelConfig:
    weights = _sizes(shapes, path)
    if isinstance(given, ModelConfig):
        settings = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
        source = "the config"
    elif given is not None:
        settings = fields_of_yaml(given, mask_layers=weights.fields["mask_layers"], num_stems=weights.num_stems)
        source = str(given.path)
    else:
        settings, source = {}, ""
    for field, value in weights.fields.items():
        if settings.get(field) is not None and settings[field] != value:
            raise InputError(
                f"{source} says {field} is {settings[field]}, but the weights in {path} have {value}: "
                "do they belong to another model?"
            )
    fields = {name: value for name, value in {**settings, **weights.fields}.items() if value is not None}
    _settle_stems(fields, weights.num_stems, path, source)
    _settle_time_mixer(fields, path)
    if assumed := [name for name in _ASSUMED if name not in fields]:
        defaults = ", ".join(f"{name} {getattr(ModelConfig, name)}" for name in assumed)
        _log.warning(
            "%s: the weights do not contain these settings, so the published models' values are assumed (give a YAML "
            "file with --config to set them): %s",
            path,
            defaults,
        )
    return _with_bands(fields, weights.band_inputs, path, source)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The sizes that can be read off the weights."""

    fields: dict[str, Any]  # of ModelConfig
    num_stems: int
    band_inputs: tuple[int, ...]  # input features of each band's Linear layer


def _sizes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> _Sizes:
    def count(pattern: str) -> int:
        found = {int(m[1]) for key in shapes if (m := re.match(pattern, key))}
        return max(found) + 1 if found else 0

    def size(key: str) -> int:
        if not shapes.get(key) or shapes[key][0] == 0:
            raise InputError(f"{path}: lacks {key}: not a band-split or Mel-band RoFormer")
        return shapes[key][0]

    layer, mask = "layers.0.0.layers.0", "mask_estimators.0.to_freqs.0.0"
    heads, qkv = size(f"{layer}.0.to_gates.bias"), size(f"{layer}.0.to_qkv.weight")
    if count(r"layers\.0\.(\d+)\.") > 2:
        raise InputError(f"{path}: has three transformers a block (linear_transformer_depth), which is not supported")
    num_bands = count(r"band_split\.to_features\.(\d+)\.")
    mask_layers = (count(re.escape(mask) + r"\.(\d+)\.weight") + 1) // 2
    fields: dict[str, Any] = {
        "band_scheme": "band_split" if "final_norm.gamma" in shapes else "mel",
        "dim": size(f"{layer}.0.norm.gamma"),
        "depth": count(r"layers\.(\d+)\."),
        "time_transformer_depth": count(r"layers\.0\.0\.layers\.(\d+)\."),
        "freq_transformer_depth": count(r"layers\.0\.1\.layers\.(\d+)\."),
        "heads": heads,
        "dim_head": qkv // (3 * heads),
        "dim_feed_forward": size(f"{layer}.1.net.1.weight"),
        "mask_layers": mask_layers,
        "num_sinks": size("sink_tokens") if "sink_tokens" in shapes else 0,
        "num_bands": num_bands,
    }
    size("band_split.to_features.0.0.gamma")  # the weights must have a band
    hidden = size(f"{mask}.0.weight")  # and a stem
    if mask_layers > 1:
        fields["dim_mask"] = hidden
    band_inputs = tuple(size(f"band_split.to_features.{band}.0.gamma") for band in range(num_bands))
    return _Sizes(fields, count(r"mask_estimators\.(\d+)\."), band_inputs)


def _settle_stems(fields: dict[str, Any], num_stems: int, path: Path, source: str) -> None:
    """Names the stems if nothing did, and checks their number."""
    if "stems" not in fields:
        fields["stems"] = ("vocals",) if num_stems == 1 else tuple(f"stem{i + 1}" for i in range(num_stems))
        _log.warning("%s: the weights do not name their stems, so they are called %s", path, ", ".join(fields["stems"]))
    if len(fields["stems"]) != num_stems:
        raise InputError(
            f"{source} names {len(fields['stems'])} stems ({', '.join(fields['stems'])}), "
            f"but the weights in {path} have {num_stems}: do they belong to another model?"
        )


def _settle_time_mixer(fields: dict[str, Any], path: Path) -> None:
    """Chooses the time mixer if nothing did: windowed sink attention for weights with sinks."""
    if "time_mixer" not in fields:
        fields["time_mixer"] = "windowed_sink" if fields["num_sinks"] else "full"
        if fields["num_sinks"]:
            _log.warning(
                "%s: has sink tokens, but no setting gives the window, so the published %d is assumed",
                path,
                ModelConfig.window,
            )
    if fields["time_mixer"] == "windowed_sink":
        if not fields.get("zero_dc", True):
            _log.warning("%s: zero_dc is taken as true, because the code of windowed-sink models always sets it", path)
        fields["zero_dc"] = True


def _with_bands(fields: dict[str, Any], band_inputs: tuple[int, ...], path: Path, source: str) -> ModelConfig:
    """Returns the config whose bands have the weights' sizes: finds the channels, and the widths of disjoint bands."""
    channels = (fields["channels"],) if "channels" in fields else (2, 1)
    mel = fields["band_scheme"] == "mel"
    for count in channels:
        widths = tuple(size // (2 * count) for size in band_inputs)
        candidate: dict[str, Any] = {**fields, "channels": count}
        if not mel:
            candidate.setdefault("freqs_per_bands", widths)
            n_fft = fields.get("stft_n_fft", ModelConfig.stft_n_fft)
            if sum(candidate["freqs_per_bands"]) != n_fft // 2 + 1:
                continue
        config = ModelConfig(**candidate)
        if tuple(2 * count * width for width in band_layout(config).widths) == band_inputs:
            return config
    settings = ", ".join(
        f"{name} {fields[name]}"
        for name in ("channels", "sample_rate", "stft_n_fft", "freqs_per_bands")
        if name in fields
    )
    where = f"{source} says {settings}" if source else "the published models' sample rate and stft_n_fft"
    raise InputError(
        f"{path}: its {len(band_inputs)} bands take {band_inputs[0]} to {max(band_inputs)} inputs, which does not fit "
        f"{where}: give the YAML that came with the checkpoint"
    )
