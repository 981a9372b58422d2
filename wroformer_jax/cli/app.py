"""The `wroformer` command.

The module imports only the standard library at the top, so that `--help` and mistakes on the command line answer at
once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from wroformer_jax import __version__
from wroformer_jax.cli import convert, evaluate, inspect, plan, prepare, separate, train
from wroformer_jax.cli.arguments import add_verbose
from wroformer_jax.cli.output import EXIT_OK, print_out, with_exit_status
from wroformer_jax.cli.parser import ArgumentParser
from wroformer_jax.cli.processor import prepare_process


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; wrong arguments raise SystemExit, as in argparse."""
    args = _parser().parse_args(argv)
    if argv is None:  # the process is this command's own
        prepare_process(sys.orig_argv)
    try:
        return with_exit_status(args, program="wroformer")
    except BrokenPipeError:  # as by `| head`; Python still flushes stdout at the end, so give it another file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="wroformer", description="Music source separation with band-split RoFormers.")
    parser.add_argument("--version", action="version", version=f"wroformer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (separate, prepare, train, evaluate, inspect, plan, convert):
        command.add_to(commands)
    models = commands.add_parser(
        "models", help="list the known checkpoints", description="Lists the known checkpoints."
    )
    models.set_defaults(run=_models, goes_on=False)
    add_verbose(models)
    return parser


def _models(args: argparse.Namespace) -> int:
    from wroformer_jax.cli.tables import models_table

    print_out(models_table())
    return EXIT_OK
