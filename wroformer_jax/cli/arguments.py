"""Options that several commands share, and the types of all options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.config.model import ModelConfig


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how a checkpoint is read and how the model runs on a song."""
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="the checkpoint's settings, where it does not carry them")
    add(
        "--chunk-seconds",
        type=seconds_or_whole,
        default=8.0,
        metavar="N",
        help="seconds that the model gets at once, or 'whole' for a song in one pass (default: 8)",
    )
    add("--overlap", type=count, default=2, metavar="N", help="chunks that each sample lies in (default: 2)")
    add("--batch-size", type=count, default=1, metavar="N", help="chunks separated at a time (default: 1)")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Adds --verbose."""
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, and show the traceback of an error")


def chosen_stems(config: ModelConfig, names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the stems that --stems asks for, or all of the model's.

    Raises:
      InputError: the model has no such stem, or the name of one of its stems cannot be the name of a file.
    """
    from wroformer_jax.separation.stream import stem_names

    known = stem_names(config)
    for name in known:
        # The names come with the checkpoint, possibly from a stranger, and become names of files.
        if name in (".", "..") or any(c in name for c in "/\\:\0\n"):
            raise InputError(f"the checkpoint names a stem {name!r}, which cannot be the name of a file")
    for name in names or ():
        if name not in known:
            raise InputError(f"--stems {name}: this checkpoint gives {', '.join(known)}")
    return tuple(names) if names else known


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole_number(text: str) -> int:
    """A whole number, 0 included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> float:
    """A positive number."""
    return _positive(text, "a positive number")


def seconds(text: str) -> float:
    """A positive number of seconds."""
    return _positive(text, "a positive number of seconds")


def seconds_or_whole(text: str) -> float | None:
    """A positive number of seconds, or None for 'whole'."""
    return None if text == "whole" else _positive(text, "a positive number of seconds, nor 'whole'")


def seconds_or_max(text: str) -> float | str:
    """A positive number of seconds, or 'max'."""
    return text if text == "max" else _positive(text, "a positive number of seconds, nor 'max'")


def percent(text: str) -> float:
    """A percentage from 1 to 50."""
    expected = "a percentage from 1 to 50"
    number = _positive(text, expected)
    if not 1 <= number <= 50:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return number


def names(text: str) -> tuple[str, ...]:
    """Different names with commas between them."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names with commas between them")
    return names


def mesh(text: str) -> Mapping[str, int]:
    """Sizes of the mesh's axes, as in data=2,seq=4; axes that are left out are 1."""
    from wroformer_jax.config.training import MESH_AXES

    sizes: dict[str, int] = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(f'{axis}=N' for axis in MESH_AXES)}")
        sizes[axis] = int(size)
    return sizes


def _positive(text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return number
