"""What the subcommands of `wroformer` have in common: options, exit statuses, and how they speak to people.

Only the standard library is imported up here, so that `--help` and mistakes on the command line answer at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.config.model import ModelConfig

Row = Sequence[str]  # of a table

EXIT_OK, EXIT_SOME_FAILED, EXIT_UNUSABLE, EXIT_INTERRUPTED = 0, 1, 2, 130


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


def report(error: InputError, *, verbose: bool, about: Sequence[Path] = ()) -> None:
    """One line on stderr; the first of `about` stands in front of an error that names none of these files."""
    if verbose:
        traceback.print_exception(error)
    named = not about or any(str(path) in str(error) for path in about)
    say(f"wroformer: error: {error}" if named else f"wroformer: error: {about[0]}: {error}")


def print_out(text: str) -> None:
    """Prints on stdout, which refuses characters that its encoding lacks: they become escapes, as on stderr."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def aligned(rows: Sequence[Row], *, left: int = 1, last_left: bool = False) -> str:
    """Columns with two spaces between them; numbers stand right.

    Args:
      rows: of equal length, the headings first.
      left: how many of the first columns stand left.
      last_left: whether the last one does, too.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    stand_left = [i < left or (last_left and i == len(widths) - 1) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, stand_left, strict=True)
        ).rstrip()
        for row in rows
    )
