"""The `wroformer` command.

Only the standard library is imported up here, so that `--help` and mistakes on the command line answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from wroformer_jax import __version__
from wroformer_jax.cli import evaluate, inspect, plan, prepare, separate
from wroformer_jax.cli.arguments import add_verbose
from wroformer_jax.cli.output import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNUSABLE, print_out, report, say
from wroformer_jax.cli.parser import ArgumentParser
from wroformer_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; mistakes in the arguments leave by SystemExit, as argparse does."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        report(error, verbose=args.verbose)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        say("wroformer: interrupted" + ("; the same command goes on where it was" if args.goes_on else ""))
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # as by `| head`; what Python still wants to flush must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="wroformer", description="Music source separation with band-split RoFormers.")
    parser.add_argument("--version", action="version", version=f"wroformer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    separate.add_to(commands)
    prepare.add_to(commands)
    evaluate.add_to(commands)
    inspect.add_to(commands)
    plan.add_to(commands)
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
