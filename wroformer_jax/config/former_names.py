"""Former names of the fields of a training run, from before they had groups: older runs and files still load."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wroformer_jax.config import model

# Former name to (group, name).
FORMER_NAMES = {
    "workers": ("loading", "workers"),
    "prefetch": ("loading", "prefetch"),
    "train_songs": ("synthetic", "train_songs"),
    "song_seconds": ("synthetic", "song_seconds"),
    "loss_weights": ("loss", "weights"),
    "loss_windows": ("loss", "windows"),
    "loss_hop": ("loss", "hop"),
    "learning_rate": ("optimizer", "learning_rate"),
    "schedule": ("optimizer", "schedule"),
    "warmup": ("optimizer", "warmup"),
    "b1": ("optimizer", "b1"),
    "b2": ("optimizer", "b2"),
    "weight_decay": ("optimizer", "weight_decay"),
    "clip_norm": ("optimizer", "clip_norm"),
    "ema": ("optimizer", "ema"),
    "freeze": ("optimizer", "freeze"),
    "learning_rate_scales": ("optimizer", "learning_rate_scales"),
    "accumulate": ("optimizer", "accumulate"),
    "max_skipped": ("optimizer", "max_skipped"),
    "validation_songs": ("validation", "songs"),
    "validation_chunk_seconds": ("validation", "chunk_seconds"),
    "validate_every": ("validation", "every"),
    "checkpoint_every": ("checkpoints", "every"),
    "keep_checkpoints": ("checkpoints", "keep"),
    "log_every": ("logging", "every"),
}


def with_current_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Moves fields of a `TrainingConfig` that have former names into their groups.

    If a field is given under both names, the value under the former name counts: a file in the older style that
    starts from today's defaults has both.
    """
    current = {name: value for name, value in fields.items() if name not in FORMER_NAMES}
    for former, (group, name) in FORMER_NAMES.items():
        if former not in fields:
            continue
        members, value = current.get(group, {}), fields[former]
        if not isinstance(members, Mapping):
            continue  # the group itself will be refused
        if isinstance(value, Mapping) and isinstance(members.get(name), Mapping):
            value = {**members[name], **value}
        current[group] = {**members, name: value}
    return current


def with_current_options(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command line with --config.GROUP.NAME in place of --config.FORMER_NAME."""

    def renamed(option: re.Match[str]) -> str:
        group, name = FORMER_NAMES.get(option[2], ("", option[2]))
        return f"{option[1]}{group}{'.' if group else ''}{name}"

    def renamed_of_model(option: re.Match[str]) -> str:
        return option[1] + model.FORMER_NAMES.get(option[2], option[2])

    arguments = [re.sub(r"^(--?config\.)(\w+)", renamed, argument) for argument in arguments]
    return [re.sub(r"^(--?config\.model\.)(\w+)", renamed_of_model, argument) for argument in arguments]


def nearest_field(name: str, fields: Mapping[str, Any]) -> str | None:
    """Returns the field, with its group, whose name is closest to an unknown name; None if none is close.

    Args:
      name: without the names of groups.
      fields: all fields, groups as mappings.
    """
    names = {former: f"{group}.{current}" for former, (group, current) in FORMER_NAMES.items()} | _leaves(fields)
    close = difflib.get_close_matches(name, names, n=1)
    return names[close[0]] if close else None


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Maps each field's name to its name with its groups; if two fields share a name, the outer one counts."""
    names = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            names |= _leaves(value, f"{prefix}{name}.")
    return names | {name: prefix + name for name in fields}
