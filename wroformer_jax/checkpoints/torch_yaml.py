"""Reads and writes the YAML files that come with public PyTorch checkpoints.

Their dialect is that of the Music-Source-Separation-Training project and its relatives: a `model:` section with the
constructor's arguments, tuples as `!!python/tuple`, the names of the stems under `training:`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError, suggestion

_log = logging.getLogger("wroformer")

# Keys of `model:` that mean the same as a field of ModelConfig and have the same values.
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
# Keys that `fields_of_yaml` interprets together with others or with the weights.
_DERIVED = {"stereo", "num_stems", "dim_freqs_in", "mask_estimator_depth", "mlp_expansion_factor"}
# The types of values. A bool does not count as an int.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_SAME, (int,)),
    **dict.fromkeys(("mask_estimator_depth", "mlp_expansion_factor", "num_stems", "dim_freqs_in"), (int,)),
    **dict.fromkeys(("zero_dc", "skip_connection", "stereo"), (bool,)),
    "freqs_per_bands": (list, tuple),
}
# Keys that change how PyTorch computes or trains, but not the result of a separation.
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
# Keys that change the result in unsupported ways, with the values that do not change it.
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


@dataclasses.dataclass(frozen=True)
class YamlSettings:
    """The parts of a YAML file that describe a model.

    Attributes:
      path: the file.
      model: its `model:` section.
      instruments: names of the stems in the training set; empty if the file does not name them.
      target: the stem that the model estimates, if it estimates one only.
    """

    path: Path
    model: Mapping[str, Any]
    instruments: tuple[str, ...] = ()
    target: str | None = None


def public_yaml(config: ModelConfig) -> str:
    """Returns a model's settings as YAML in the public dialect, for the PyTorch code and for `read_yaml`."""
    import yaml

    mel = config.band_scheme == "mel"
    fields = {key: getattr(config, field) for key, field in _SAME.items()}
    if mel:
        del fields["freqs_per_bands"]
    else:
        del fields["num_bands"], fields["sample_rate"]
        fields["freqs_per_bands"] = list(config.freqs_per_bands or ())
    if config.time_mixer != "windowed_sink":
        del fields["wsa_window_len"], fields["n_wsa_sinks"]
    model = fields | {
        "stereo": config.channels == 2,
        "num_stems": config.num_stems,
        "dim_freqs_in": config.num_bins,
        # The code of Mel-Band RoFormers builds one Linear layer more, that of BS-RoFormers exactly as many.
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
    """Reads a model's YAML file without running code from it; reads our own model.json and config.json, too.

    Raises:
      InputError: the file is missing, is not YAML of this dialect, or has an unsupported setting.
    """
    path = Path(path)
    content = _parse(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: no 'model:' section, is it the YAML that came with the checkpoint?")
    model, training = content["model"], content.get("training") or {}
    if "band_scheme" in model:  # a field of ours that the public dialect does not have
        try:
            return ModelConfig.from_dict(model)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    _check_keys(model, path)
    instruments = training.get("instruments") or () if isinstance(training, dict) else None
    if not isinstance(instruments, list | tuple):
        raise InputError(f"{path}: expected 'training:' to have a list of names under 'instruments:'")
    target = training.get("target_instrument")
    return YamlSettings(path, model, tuple(map(str, instruments)), None if target is None else str(target))


def fields_of_yaml(given: YamlSettings, *, mask_layers: int, num_stems: int) -> dict[str, Any]:
    """Returns the fields of ModelConfig that a YAML file sets; ModelConfig checks their values later.

    Args:
      given: the file.
      mask_layers: number of Linear layers in the weights' mask estimators.
      num_stems: number of stems in the weights.

    Raises:
      InputError: settings contradict each other, or the file has another number of stems than the weights.
    """
    model, path = given.model, given.path
    fields = {field: model[key] for key, field in _SAME.items() if model.get(key) is not None}
    if "stereo" in model:
        fields["channels"] = 2 if model["stereo"] else 1
    if "freqs_per_bands" in fields:
        fields["freqs_per_bands"] = tuple(fields["freqs_per_bands"])
    if "window" in fields:
        fields["time_mixer"] = "windowed_sink"
    fields.setdefault("zero_dc", True)

    n_fft = fields.get("stft_n_fft", ModelConfig.stft_n_fft)
    if model.get("dim_freqs_in", n_fft // 2 + 1) != n_fft // 2 + 1:
        raise InputError(
            f"{path}: dim_freqs_in is {model['dim_freqs_in']}, expected {n_fft // 2 + 1} for stft_n_fft = {n_fft}"
        )
    depth = model.get("mask_estimator_depth")
    # Public code bases differ: some build `depth` Linear layers, some one more.
    if depth is not None and mask_layers not in (depth, depth + 1):
        fields["mask_layers"] = depth
    if "mlp_expansion_factor" in model and "dim" in fields:
        fields["dim_mask"] = fields["dim"] * model["mlp_expansion_factor"]
    if given.target:
        fields["stems"] = (given.target,)
    elif given.instruments:
        fields["stems"] = given.instruments
    if (stems := model.get("num_stems")) is not None and stems != num_stems:
        raise InputError(
            f"{path} says num_stems is {stems}, but the weights have {num_stems}: do they belong to another model?"
        )
    return fields


def _parse(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """A SafeLoader that knows tuples."""

    def read_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple:
        return tuple(loader.construct_sequence(node))

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", read_tuple)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: not text, or an impossible date
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:160]})") from error


def _check_keys(model: Mapping[str, Any], path: Path) -> None:
    """Raises an InputError for a wrong type or an unsupported setting; logs a warning for an unknown key."""
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
            _log.warning("%s: the unknown setting %s is ignored%s", path, key, suggestion(str(key), known))
