"""The settings that `wroformer plan` was asked about."""

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
    """The config with the changes that were asked for, and the size of a batch if one was."""
    from wroformer_jax.config.former_names import with_current_names
    from wroformer_jax.config.model import ModelConfig
    from wroformer_jax.config.training import TrainingConfig
    from wroformer_jax.planning.lengths import with_seconds

    fields = with_current_names(_read(config_file(args.config)))
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


def _read(path: Path) -> dict[str, Any]:
    """The fields that the file's get_config() gives."""
    import importlib.util

    from ml_collections import ConfigDict

    if path.is_dir():
        raise InputError(f"{path} is a folder: --config takes a Python file as `wroformer train` does")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("wroformer_plan_config", path)
    if spec is None:
        raise InputError(f"{path} is not a Python file: --config takes one as `wroformer train` does")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        settings = module.get_config()
    except InputError:
        raise
    except Exception as error:  # whatever a file of settings may do wrong
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}") from error
    if not isinstance(settings, ConfigDict):
        raise InputError(f"{path}: get_config() gives {type(settings).__name__}, expected a ConfigDict")
    return settings.to_dict()


def _assign(fields: dict[str, Any], assignment: str) -> None:
    """Carries FIELD=VALUE out; unknown names are left to the config to refuse, which knows similar ones."""
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
    from wroformer_jax.planning.topology import local_devices, topology

    target = topology(args.topology) if args.topology else local_devices()
    return target._replace(memory=int(args.memory * GIB)) if args.memory else target
