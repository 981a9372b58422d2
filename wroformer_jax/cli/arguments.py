"""Options that several commands have, and their types."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.config.model import ModelConfig


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is read, and how the model is run on a song."""
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="the checkpoint's settings, where it does not carry them")
    add(
        "--chunk-seconds",
        type=seconds_or_whole,
        default=8.0,
        metavar="N",
        help="seconds that the model hears at once, or 'whole' for a song in one pass (default: 8)",
    )
    add("--overlap", type=count, default=2, metavar="N", help="chunks that each sample lies in (default: 2)")
    add("--batch-size", type=count, default=1, metavar="N", help="chunks separated at a time (default: 1)")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, and show the traceback of an error")


def chosen_stems(config: ModelConfig, names: Sequence[str] | None) -> tuple[str, ...]:
    from wroformer_jax.separation.stream import stem_names

    known = stem_names(config)
    for name in known:
        # Names come with the checkpoint, which may be a stranger's, and become names of files.
        if name in (".", "..") or any(c in name for c in "/\\:\0\n"):
            raise InputError(f"the checkpoint names a stem {name!r}, which cannot be the name of a file")
    for name in names or ():
        if name not in known:
            raise InputError(f"--stems {name}: this checkpoint gives {', '.join(known)}")
    return tuple(names) if names else known


def seconds_or_whole(text: str) -> float | None:
    if text == "whole":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds, nor 'whole'")
    return seconds


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names with commas between them")
    return names
