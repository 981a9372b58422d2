"""`wroformer train`, and train.py in a clone: trains a model, or continues an interrupted run.

The options are absl's flags, because `--config.FIELD=VALUE` is a flag of ml_collections, which knows the fields only
once it has read the config. Both are imported when they are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from wroformer_jax.cli.compiled_programs import keep_compiled_programs
from wroformer_jax.cli.output import EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED, EXIT_UNUSABLE, say
from wroformer_jax.cli.parser import ArgumentParser
from wroformer_jax.cli.recipes import config_file, recipe_files
from wroformer_jax.errors import InputError

_HELP = """
Fields of the config are set as --config.FIELD=VALUE, for example --config.steps=2000. The same command goes on with a
run that was interrupted.

On several hosts start the same command on each. On a TPU pod, under Slurm and under Open MPI the processes find each
other; elsewhere give --coordinator, --num_processes and --process_id (0 on the coordinator's host).

Exit status: 0 done, 2 the input is wrong, 130 interrupted, 143 SIGTERM came (a notice of preemption) and the state is
saved.

Example:
  wroformer train --config quickstart --workdir runs/quickstart
"""


class Option(NamedTuple):
    """An option of the command."""

    type: type
    metavar: str | None
    help: str


OPTIONS = {
    "config": Option(str, "NAME|FILE.py", "a recipe of the package or a file like one"),
    "workdir": Option(str, "DIR", "folder for checkpoints, curves and logs, created if missing; or gs://BUCKET/RUN"),
    "coordinator": Option(str, "HOST:PORT", "address of the first of several processes"),
    "num_processes": Option(int, "N", "number of processes, usually one per host"),
    "process_id": Option(int, "I", "number of this process, from 0"),
    "verbose": Option(bool, None, "show the traceback of an error"),
}


def add_to(commands: Any) -> None:
    """Adds the command to the parser's; its arguments go to `main` as they are."""
    help_of_train = _help("wroformer train")
    train = commands.add_parser("train", passes_on=True, help="train a model, or go on training", **help_of_train)
    train.set_defaults(run=lambda args: main(args.passed_on, program="wroformer train"), goes_on=True, verbose=False)
    _add_options(train)


def main(arguments: Sequence[str], *, program: str) -> int:
    """Trains, and returns the exit status: 0, 2 when the input is wrong, 130 or 143 when interrupted or terminated.

    Args:
      arguments: the command line behind the program's name.
      program: the start of messages.
    """
    if {"-h", "--help"} & set(arguments):
        parser = ArgumentParser(prog=program, **_help(program))
        _add_options(parser)
        parser.print_help()
        return EXIT_OK
    try:
        flags = _parse([program, *arguments])
    except InputError as error:
        say(f"{program}: {error}")
        return EXIT_UNUSABLE
    try:
        return _train(flags, program)
    except InputError as error:
        if flags.verbose:
            traceback.print_exc()
        say(f"{program}: {error}")
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        say(f"{program}: interrupted; the same command goes on from the newest checkpoint")
        return EXIT_INTERRUPTED


def _help(program: str) -> dict[str, Any]:
    """Returns the settings of argparse that describe the command."""
    return {
        "description": "Trains a model by a recipe, or goes on with a run that was interrupted.",
        "epilog": f"Recipes: {', '.join(recipe_files())}\n{_HELP}",
        "usage": f"{program} --config NAME|FILE.py --workdir DIR [--config.FIELD=VALUE ...] [options]",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for --help; absl's flags parse them."""
    for name, option in OPTIONS.items():
        if option.type is bool:
            parser.add_argument(f"--{name}", action="store_true", help=option.help)
        else:
            parser.add_argument(f"--{name}", metavar=option.metavar, help=option.help)


def _train(flags: Any, program: str) -> int:
    from wroformer_jax.config.training import TrainingConfig

    config = TrainingConfig.from_dict(flags.config.to_dict())
    # These imports take seconds, so a mistake in the config is reported first.
    from wroformer_jax.parallel.processes import connect
    from wroformer_jax.training.loop import PreemptedError
    from wroformer_jax.training.trainer import train

    keep_compiled_programs()
    connect(flags.coordinator, flags.num_processes, flags.process_id)
    try:
        train(config, flags.workdir)
    except PreemptedError as saved:
        say(f"{program}: terminated; {saved}, and the same command goes on from there")
        return EXIT_TERMINATED
    return EXIT_OK


def _parse(argv: list[str]) -> Any:
    """Parses the flags as `_parse_as_given` does, and again with the current names of fields if that fails."""
    from wroformer_jax.config.former_names import with_current_options

    try:
        return _parse_as_given(argv)
    except InputError:
        renamed = with_current_options(argv)
        if renamed == argv:
            raise
    return _parse_as_given(renamed)


def _parse_as_given(argv: list[str]) -> Any:
    """Parses the flags and loads the config.

    Args:
      argv: the program's name and its arguments.

    Returns:
      absl's FlagValues; `config` is a ConfigDict.

    Raises:
      InputError: a flag, the config or a field of it is wrong.
    """
    import faulthandler

    from absl import flags as absl_flags
    from absl import logging as absl_logging
    from ml_collections import ConfigDict, config_flags

    with contextlib.suppress(OSError):  # stderr may be no file
        faulthandler.enable()
    absl_logging.use_absl_handler()
    argv = _with_file_of_config(argv)
    flags = absl_flags.FlagValues()  # of its own, because the config adds its fields
    flags.append_flag_values(absl_flags.FLAGS)
    define = {str: absl_flags.DEFINE_string, int: absl_flags.DEFINE_integer, bool: absl_flags.DEFINE_bool}
    for name, option in OPTIONS.items():
        if name != "config":
            define[option.type](name, False if option.type is bool else None, option.help, flag_values=flags)
    config_flags.DEFINE_config_file("config", None, OPTIONS["config"].help, flag_values=flags, sys_argv=argv)
    absl_flags.mark_flags_as_required(["config", "workdir"], flag_values=flags)
    try:
        rest = flags(argv)
        absl_flags.FLAGS.mark_as_parsed()
        settings = flags.config
        getattr(settings, "to_dict", None)  # ml_collections' stand-in for a missing file raises when it is used
    except (absl_flags.Error, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError, SyntaxError) as e:
        raise InputError(_sentence(e)) from e
    if not isinstance(settings, ConfigDict):
        raise InputError(f"get_config() gives {type(settings).__name__}, expected a ConfigDict")
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: settings are given as --config.NAME=VALUE")
    if flags["verbosity"].using_default_value:
        absl_logging.set_verbosity(absl_logging.WARNING)  # absl's default, INFO, shows what every library logs
    return flags


def _with_file_of_config(argv: list[str]) -> list[str]:
    """Returns the arguments with the file of the recipe in place of its name."""
    argv = list(argv)
    for i, argument in enumerate(argv[1:], 1):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            if equals:
                argv[i] = f"{flag}={config_file(value)}"
            elif i + 1 < len(argv):
                argv[i + 1] = str(config_file(argv[i + 1]))
            break
    return argv


def _sentence(error: Exception) -> str:
    """Returns the reason that ml_collections and absl give, without quotation marks and the lines before it."""
    from wroformer_jax.config.training import unknown_field

    text = str(error.args[0] if error.args else error).replace("\\n", "\n").replace("\\'", "'")
    if isinstance(error, AttributeError | KeyError) and (name := re.match(r"['\"]+(\w+)", text)):
        return unknown_field(name[1])
    if "Flag --" in str(error) and "must have a value" in str(error):
        return "--config and --workdir are needed, as in --config=quickstart --workdir=runs/quickstart"
    if wrong := re.match(r"flag --([\w.]+)=(.*): (invalid literal for int|could not convert string to float)", text):
        number = "a whole number" if "int" in wrong[3] else "a number"
        return f"{wrong[1]} is {wrong[2]!r}, expected {number}"
    if missing := re.search(r"No such file or directory: '([^']+)'", str(error)):
        return f"{missing[1]}: no such file"
    return str(error).strip().splitlines()[-1].strip()
