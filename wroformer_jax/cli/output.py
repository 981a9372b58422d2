"""Exit statuses of the commands, and how they print and report errors."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from wroformer_jax.errors import InputError

EXIT_OK, EXIT_SOME_FAILED, EXIT_UNUSABLE = 0, 1, 2
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143  # 128 and the signal's number, as shells report it


def with_exit_status(args: argparse.Namespace, *, program: str) -> int:
    """Runs a command and returns its exit status, after reporting an InputError or an interruption on stderr.

    Args:
      args: the parsed arguments; `run` is the command, and `goes_on` says whether the same command resumes its work.
      program: the start of the messages.
    """
    try:
        return args.run(args)
    except InputError as error:
        report(error, verbose=args.verbose, program=program)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        say(f"{program}: interrupted" + ("; the same command goes on where it was" if args.goes_on else ""))
        return EXIT_INTERRUPTED


def report(error: InputError, *, verbose: bool, about: Sequence[Path] = (), program: str = "wroformer") -> None:
    """Prints one line on stderr.

    Args:
      error: its message is printed.
      verbose: print the traceback, too.
      about: files; the first of them is put before a message that names none of them.
      program: the start of the line.
    """
    if verbose:
        traceback.print_exception(error)
    named = not about or any(str(path) in str(error) for path in about)
    say(f"{program}: error: {error}" if named else f"{program}: error: {about[0]}: {error}")


def print_out(text: str) -> None:
    """Prints on stdout; characters that its encoding lacks are escaped, as Python does on stderr."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)


def say(message: str) -> None:
    """Prints on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def log_to_stdout() -> Iterator[None]:
    """Shows the package's log (which settings it found and which it assumed) among the lines on stdout."""
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
