"""What the subcommands of `wroformer` have in common: options, exit statuses, and how they speak to people.

Only the standard library is imported up here, so that `--help` and mistakes on the command line answer at once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    pass


EXIT_OK, EXIT_SOME_FAILED, EXIT_UNUSABLE, EXIT_INTERRUPTED = 0, 1, 2, 130


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


@contextlib.contextmanager
def log_to_stdout() -> Iterator[None]:
    """Shows what the package logs (which settings it found, what it assumed) among the lines printed here."""
    logger = logging.getLogger("wroformer")
    handler = logging.StreamHandler(sys.stdout)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
