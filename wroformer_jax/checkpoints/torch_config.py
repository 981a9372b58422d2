"""A model's settings from what a public PyTorch checkpoint tells: the shapes of its weights and its YAML file.

The public YAML dialect is that of the Music-Source-Separation-Training project and its relatives: a `model:` section
with the constructor's arguments, tuples as `!!python/tuple`, the stems' names under `training:`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError, suggestion
from wroformer_jax.model.bands import band_layout

log = logging.getLogger("wroformer")

# Keys of `model:` with the same meaning and the same values here.
_SAME = {
    "dim": "dim",
    "depth": "depth",
    "time_transformer_depth": "time_transformer_depth",
    "freq_transformer_depth": "freq_transformer_depth",
    "num_bands": "num_bands",
    "freqs_per_bands": "freqs_per_bands",
    "dim_head": "dim_head",
    "heads": "heads",
    "sample_rate": "sample_rate",
    "stft_n_fft": "stft_n_fft",
    "stft_hop_length": "stft_hop_length",
    "stft_win_length": "stft_win_length",
    "zero_dc": "zero_dc",
    "skip_connection": "skip_connection",
    "wsa_window_len": "window",
    "n_wsa_sinks": "num_sinks",
}
# Keys read with the help of others, in `_Settings.fields` and `complete_settings`.
_DERIVED = {"stereo", "num_stems", "dim_freqs_in", "mask_estimator_depth", "mlp_expansion_factor"}
# What the YAML must hold for a key; bool is no int here.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_SAME, (int,)),
    **dict.fromkeys(("mask_estimator_depth", "mlp_expansion_factor", "num_stems", "dim_freqs_in"), (int,)),
    **dict.fromkeys(("zero_dc", "skip_connection", "stereo"), (bool,)),
    "freqs_per_bands": (list, tuple),
}
# Keys that change how PyTorch computes, or how it trains, but not what comes out of a separation.
_NO_EFFECT = {
    "attn_dropout",
    "ff_dropout",
    "flash_attn",
    "sage_attention",
    "use_torch_checkpoint",
    "match_input_audio_length",
    "multi_stft_resolution_loss_weight",
    "multi_stft_resolutions_window_sizes",
    "multi_stft_hop_size",
    "multi_stft_normalized",
    "multi_stft_window_fn",
}
# Keys that change the maths in ways not supported, with the values that leave it as it is.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stft_normalized": (False,),
    "stft_window_fn": (None,),
    "linear_transformer_depth": (0,),
    "num_residual_streams": (1,),
    "num_residual_fracs": (1,),
    "use_pope": (False,),
    "add_value_residual": (False,),
    "use_value_residual_learning": (False,),
    "value_residual": (False,),
}
# Fields that weights cannot tell, and the published models' values for them.
_ASSUMED = ("sample_rate", "stft_n_fft", "stft_hop_length", "stft_win_length")


@dataclasses.dataclass(frozen=True)
class YamlSettings:
    """What a YAML file says of a model.

    Attributes:
      path: the file.
      model: its `model:` section.
      instruments: names of the stems in the training set, empty when the file does not say.
      target: the one stem that the model estimates, if it is one.
    """

    path: Path
    model: Mapping[str, Any]
    instruments: tuple[str, ...] = ()
    target: str | None = None


def public_yaml(config: ModelConfig) -> str:
    """A model's settings in the public dialect, for the PyTorch code and for `read_yaml`."""
    import yaml

    mel = config.band_scheme == "mel"
    fields = {key: getattr(config, field) for key, field in _SAME.items()}
    if mel:
        del fields["freqs_per_bands"]
    else:
        del fields["num_bands"], fields["sample_rate"]
        fields["freqs_per_bands"] = list(config.freqs_per_bands)
    if config.time_mixer != "windowed_sink":
        del fields["wsa_window_len"], fields["n_wsa_sinks"]
    model = fields | {
        "stereo": config.channels == 2,
        "num_stems": config.num_stems,
        "dim_freqs_in": config.num_bins,
        # Mel-Band RoFormers are built with one Linear layer more than this says, BS-RoFormers with as many.
        "mask_estimator_depth": config.mask_layers - 1 if mel else config.mask_layers,
    }
    training = {
        "instruments": list(config.stems),
        "target_instrument": config.stems[0] if config.num_stems == 1 else None,
    }
    audio = {"sample_rate": config.sample_rate, "num_channels": config.channels}
    content = {"audio": audio, "model": model, "training": training}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | os.PathLike) -> YamlSettings | ModelConfig:
    """Reads a model's YAML file without running code from it; our own model.json and config.json are read, too.

    Raises:
      InputError: the file is missing, not YAML of this dialect, or has a setting that is not supported.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that knows tuples."""

    Loader.add_constructor(
        "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
    )
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: not text, or an impossible date
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: no 'model:' section, is it the YAML that came with the checkpoint?")
    model, training = content["model"], content.get("training") or {}
    if "band_scheme" in model:  # a field of ours that the public dialect does not have
        try:
            return ModelConfig.from_dict(model)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    _check_known(model, path)
    instruments = training.get("instruments") or () if isinstance(training, dict) else None
    if not isinstance(instruments, list | tuple):
        raise InputError(f"{path}: expected 'training:' to have a list of names under 'instruments:'")
    target = training.get("target_instrument")
    return YamlSettings(path, model, tuple(map(str, instruments)), None if target is None else str(target))


def _check_known(model: Mapping[str, Any], path: Path) -> None:
    known = [*_SAME, *_DERIVED, *_NO_EFFECT, *_NEUTRAL]
    for key, value in model.items():
        if key in _TYPES and value is not None and type(value) not in _TYPES[key]:
            kinds = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise InputError(f"{path}: {key} is {value!r}, expected {kinds}")
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            raise InputError(
                f"{path}: {key}: {value} changes what the model computes and is not supported "
                f"(only {key}: {_NEUTRAL[key][0]} is)"
            )
        if key not in known:
            log.warning("%s: the unknown setting %s is ignored%s", path, key, suggestion(str(key), known))


def complete_settings(
    shapes: Mapping[str, tuple[int, ...]], given: YamlSettings | ModelConfig | None, path: Path
) -> ModelConfig:
    """Joins what the weights tell with what is given, and names a contradiction.

    Args:
      shapes: the state dict's keys and shapes.
      given: the checkpoint's YAML, a config, or nothing.
      path: the checkpoint, for messages.

    Raises:
      InputError: the weights are of another family, or contradict what is given.
    """
    try:
        return _completed(shapes, given, path)
    except InputError as error:
        raise (error if str(path) in str(error) else InputError(f"{path}: {error}")) from error


def _completed(
    shapes: Mapping[str, tuple[int, ...]], given: YamlSettings | ModelConfig | None, path: Path
) -> ModelConfig:
    read = _from_weights(shapes, path)
    if isinstance(given, ModelConfig):
        said, source = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}, "the config"
    elif given is not None:
        said, source = _from_yaml(given, read), str(given.path)
    else:
        said, source = {}, ""
    for field in ("channels", "num_bands", "freqs_per_bands"):
        said.setdefault(field, None)

    band_inputs = read.pop("band_inputs")
    num_stems = read.pop("num_stems")
    for field, value in read.items():
        if said.get(field) is not None and said[field] != value:
            raise InputError(
                f"{source} says {field} is {said[field]}, but the weights in {path} have {value}: "
                "do they belong to another model?"
            )
    fields = {k: v for k, v in {**said, **read}.items() if v is not None}
    _check_stems(fields, num_stems, path, source)
    _check_time_mixer(fields, path)
    assumed = [name for name in _ASSUMED if name not in fields]
    if assumed:
        defaults = ", ".join(f"{name} {getattr(ModelConfig, name)}" for name in assumed)
        log.warning(
            "%s: the weights do not tell, so the published models' values are assumed (a YAML file given with "
            "--config would tell): %s",
            path,
            defaults,
        )
    return _with_bands(fields, band_inputs, path, source)


def _from_weights(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """Fields that the weights tell; `band_inputs` (sizes) and `num_stems` come with them."""

    def count(pattern: str) -> int:
        found = {int(m[1]) for key in shapes if (m := re.match(pattern, key))}
        return max(found) + 1 if found else 0

    def size(key: str, axis: int = 0) -> int:
        if key not in shapes or len(shapes[key]) <= axis or shapes[key][axis] == 0:
            raise InputError(f"{path}: lacks {key}: not a band-split or Mel-band RoFormer")
        return shapes[key][axis]

    layer = "layers.0.0.layers.0"
    heads, qkv = size(f"{layer}.0.to_gates.bias"), size(f"{layer}.0.to_qkv.weight")
    if count(r"layers\.0\.(\d+)\.") > 2:
        raise InputError(f"{path}: has three transformers a block (linear_transformer_depth), which is not supported")
    mask = "mask_estimators.0.to_freqs.0.0"
    mask_layers = (count(re.escape(mask) + r"\.(\d+)\.weight") + 1) // 2
    read = {
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
        "num_bands": count(r"band_split\.to_features\.(\d+)\."),
    }
    if mask_layers > 1:
        read["dim_mask"] = size(f"{mask}.0.weight")
    size("band_split.to_features.0.0.gamma"), size(f"{mask}.0.weight")  # there is a band and a stem
    read["num_stems"] = count(r"mask_estimators\.(\d+)\.")
    read["band_inputs"] = tuple(size(f"band_split.to_features.{band}.0.gamma") for band in range(read["num_bands"]))
    return read


def _from_yaml(given: YamlSettings, read: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a YAML file tells, checked for their types by ModelConfig later."""
    model, path = given.model, given.path
    said = {field: model[key] for key, field in _SAME.items() if model.get(key) is not None}
    if "stereo" in model:
        said["channels"] = 2 if model["stereo"] else 1
    if "freqs_per_bands" in said:
        said["freqs_per_bands"] = tuple(said["freqs_per_bands"])
    if "window" in said:
        said["time_mixer"] = "windowed_sink"
    said.setdefault("zero_dc", True)

    n_fft = said.get("stft_n_fft", ModelConfig.stft_n_fft)
    if model.get("dim_freqs_in", n_fft // 2 + 1) != n_fft // 2 + 1:
        raise InputError(
            f"{path}: dim_freqs_in is {model['dim_freqs_in']}, expected {n_fft // 2 + 1} for stft_n_fft = {n_fft}"
        )
    depth = model.get("mask_estimator_depth")
    # Public code bases differ: some build `depth` Linear layers, some one more.
    if depth is not None and read["mask_layers"] not in (depth, depth + 1):
        said["mask_layers"] = depth
    if "mlp_expansion_factor" in model and "dim" in said:
        said["dim_mask"] = said["dim"] * model["mlp_expansion_factor"]
    if given.target:
        said["stems"] = (given.target,)
    elif given.instruments:
        said["stems"] = given.instruments
    if (stems := model.get("num_stems")) is not None and stems != read["num_stems"]:
        raise InputError(
            f"{path} says num_stems is {stems}, but the weights have {read['num_stems']}: "
            "do they belong to another model?"
        )
    return said


def _check_stems(fields: dict[str, Any], num_stems: int, path: Path, source: str) -> None:
    if "stems" not in fields:
        fields["stems"] = ("vocals",) if num_stems == 1 else tuple(f"stem{i + 1}" for i in range(num_stems))
        log.warning("%s: the weights do not name the stems, called %s", path, ", ".join(fields["stems"]))
    if len(fields["stems"]) != num_stems:
        raise InputError(
            f"{source} names {len(fields['stems'])} stems ({', '.join(fields['stems'])}), "
            f"but the weights in {path} have {num_stems}: do they belong to another model?"
        )


def _check_time_mixer(fields: dict[str, Any], path: Path) -> None:
    if "time_mixer" not in fields:
        fields["time_mixer"] = "windowed_sink" if fields["num_sinks"] else "full"
        if fields["num_sinks"]:
            log.warning(
                "%s: has sink tokens, but nothing tells the window, so the published %d is assumed",
                path,
                ModelConfig.window,
            )
    if fields["time_mixer"] == "windowed_sink":
        if not fields.get("zero_dc", True):
            log.warning("%s: zero_dc is taken as true, as the windowed-sink models' own code always does", path)
        fields["zero_dc"] = True


def _with_bands(fields: dict[str, Any], band_inputs: tuple[int, ...], path: Path, source: str) -> ModelConfig:
    """The config whose bands have the weights' sizes: channels, and disjoint bands, are read off those."""
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
