"""Reads the config that `wroformer plan` names, and applies the changes that its options ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.cli.plan_tables import GIB
from wroformer_jax.cli.recipes import config_file
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.config.training import TrainingConfig
    from wroformer_jax.planning.topology import Target


def planned_settings(args: argparse.Namespace) -> tuple[TrainingConfig, int | None]:
    """Returns the config with the changes that the options ask for, and the batch size if --set gives one.

    Raises:
      InputError: the file cannot be read, or a setting is impossible.
    """
    from wroformer_jax.config.former_names import with_current_names
    from wroformer_jax.config.model import ModelConfig
    from wroformer_jax.config.training import TrainingConfig
    from wroformer_jax.planning.lengths import with_seconds

    fields = with_current_names(_read(config_file(args.config)))
    if args.init:
        fields["model"] = _model_of(args.init, fields.get("model") or {}, inference=args.inference)
    for assignment in args.set:
        _assign(fields, assignment)
    fields = with_current_names(fields)
    model = fields.get("model")
    if args.time_mixer and isinstance(model, dict):
        model["time_mixer"] = args.time_mixer
        windows = args.time_mixer == "windowed_sink"
        model["num_sinks"] = (model.get("num_sinks") or ModelConfig.num_sinks) if windows else 0
        if not windows:  # patterns of the sinks would match nothing; scales take no memory
            _assign(fields, "optimizer.learning_rate_scales=()")
    if args.mesh:
        fields["mesh"] = args.mesh
    if args.no_teacher:
        _assign(fields, "loss.weights.masks=0")
    batch_size = fields.get("batch_size") if any(text.startswith("batch_size=") for text in args.set) else None
    config = TrainingConfig.from_dict(fields)
    if isinstance(args.seconds, float):
        config = with_seconds(config, args.seconds)
    return config, batch_size


def _model_of(source: str, settings: Any, *, inference: bool) -> dict[str, Any]:
    """Returns the settings of a saved model, with those of a config that a run may choose: dtypes and memory.

    As in `wroformer train`, a model with full attention gets the windowed sinks of a config that has them. The forward
    pass is that of the model as it is saved.
    """
    from wroformer_jax.checkpoints import loading
    from wroformer_jax.config.model import MEMORY_FIELDS, ModelConfig

    saved, _, _ = loading.read(source)
    wanted = ModelConfig.from_dict(settings)
    kept = ["dtype", *MEMORY_FIELDS]
    if not inference and saved.time_mixer != "windowed_sink" and wanted.time_mixer == "windowed_sink":
        kept += ["time_mixer", "window", "num_sinks"]
    return {**saved.to_dict(), **{name: getattr(wanted, name) for name in kept}}


def _read(path: Path) -> dict[str, Any]:
    """Returns the fields that the file's get_config() gives."""
    import importlib.util

    from ml_collections import ConfigDict

    if path.is_dir():
        raise InputError(f"{path} is a folder: --config takes a Python file as `wroformer train` does")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("wroformer_plan_config", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file: --config takes one as `wroformer train` does")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        settings = module.get_config()
    except InputError:
        raise
    except Exception as error:  # a config is code and may raise anything
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}") from error
    if not isinstance(settings, ConfigDict):
        raise InputError(f"{path}: get_config() gives {type(settings).__name__}, expected a ConfigDict")
    return settings.to_dict()


def _assign(fields: dict[str, Any], assignment: str) -> None:
    """Sets a field by FIELD=VALUE. The config refuses unknown names later, since it can suggest similar ones."""
    import ast

    from wroformer_jax.config.model import FORMER_NAMES

    name, equals, text = assignment.partition("=")
    if not equals or not name:
        raise InputError(f"--set {assignment}: expected FIELD=VALUE, as in model.window=20")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a word
        value = text
    *parents, last = name.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise InputError(f"--set {assignment}: {parent} has no fields")
    fields[FORMER_NAMES.get(last, last) if parents == ["model"] else last] = value


def planned_target(args: argparse.Namespace) -> Target:
    """Returns the devices that the options name, with the memory of --memory."""
    from wroformer_jax.planning.topology import find_topology, local_devices

    target = find_topology(args.topology) if args.topology else local_devices()
    return target._replace(memory=int(args.memory * GIB)) if args.memory else target
