"""`wroformer plan`: what a run takes of devices that need not be there, before it is paid for."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.cli.arguments import add_verbose, mesh, percent, positive, seconds_or_max
from wroformer_jax.cli.output import EXIT_OK, print_out, say
from wroformer_jax.cli.plan_settings import planned_settings, planned_target
from wroformer_jax.cli.plan_tables import tables
from wroformer_jax.cli.planner import Planner
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.planning.longest_fit import Limits
    from wroformer_jax.planning.plans import Plan

_HELP = """
Nothing is run and no checkpoint or data is read: the program is compiled by XLA, which knows the memory of each device,
and refuses what does not fit. At the published size that takes half a minute; --seconds max does it four times or so.
TPUs need not be there, but libtpu must be: it compiles for all of them on a CPU.

Memory and what is sent are XLA's numbers for this very program. FLOPs are counted from the settings. The time of a step
is an estimate from data sheets, never measured.

Example:
  wroformer plan --topology v5e:4x4 --config configs/finetune_wsa.py --seconds max
"""


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    plan = commands.add_parser(
        "plan",
        help="say what a training run takes of a TPU slice, without one",
        description="Compiles the training step (or the forward pass) of a config for a TPU slice, or for the devices\n"
        "that are here, and says what it takes: memory, communication, FLOPs, and the time of a step at best.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(run=run, goes_on=False)
    add = plan.add_argument
    add("--config", required=True, metavar="NAME|FILE.py", help="the settings, as `wroformer train` takes them")
    add("--topology", metavar="NAME", help="a TPU slice such as v5e:4x4 (default: the devices that are here)")
    add("--seconds", type=seconds_or_max, metavar="N|max", help="of each example, or 'max': find the longest that fits")
    add("--mesh", type=mesh, metavar="data=N,fsdp=N,seq=N", help="axes left out are 1, one of them may be -1: the rest")
    add("--time-mixer", metavar="NAME", help="windowed_sink, full or naive, in place of the config's")
    add(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another value, as in model.window=20; repeat"
    )
    add("--inference", action="store_true", help="plan separating the examples in one pass, not training")
    add("--no-teacher", action="store_true", help="leave the teacher out that the config has")
    add("--memory", type=positive, metavar="GIB", help="plan for devices of so much memory")
    add("--tolerance", type=percent, default=5.0, metavar="PERCENT", help="of --seconds max (default: 5)")
    add("--json", type=Path, metavar="FILE", help="write all of it as JSON, too")
    add_verbose(plan)


def run(args: argparse.Namespace) -> int:
    """Settings first, which fail quickly; then compiles, and prints tables."""
    from wroformer_jax.planning.plans import settle
    from wroformer_jax.training.state import time_of

    if args.topology:
        import jax

        # The devices here only trace; without this JAX looks for a TPU as soon as libtpu is there.
        jax.config.update("jax_platforms", "cpu")
    config, batch_size = planned_settings(args)
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):  # before minutes are spent
        wrong = f"{args.json} is a folder" if args.json.is_dir() else f"{args.json.parent} is not a folder"
        raise InputError(f"--json {args.json} cannot be written: {wrong}")
    target = planned_target(args)
    of_file = config.batch_size
    config, mesh = settle(config, target, batch_size=batch_size)
    if config.batch_size != of_file:
        say(
            f"planning a batch of {config.batch_size}, the least that the mesh takes; the config's is {of_file} "
            f"(--set batch_size={of_file})"
        )
    if args.seconds != "max" and not args.inference:
        time_of(config, mesh)  # what cannot be cut is refused before anything is compiled
    planner = Planner(config, mesh, target, inference=args.inference)
    limits = None
    if args.seconds == "max":
        limits = planner.search(args.tolerance / 100)
        found = planner.plans[limits.fits.seconds]
    else:
        found = planner.at(config.seconds)
    print_out(tables(found, limits, verbose=args.verbose))
    if config.batch_size != of_file:
        print_out(f"\nNot planned: the config's batch of {of_file} (--set batch_size={of_file})")
    if args.json:
        _write_json(args.json, found, limits)
    return EXIT_OK


def _write_json(path: Path, found: Plan, limits: Limits | None) -> None:
    import dataclasses

    from wroformer_jax.io.files import replacing

    described = found.to_dict()
    if limits:
        described["longest"] = {name: one and dataclasses.asdict(one) for name, one in limits._asdict().items()}
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--json {path} cannot be written: {os.strerror(error.errno)}") from error
