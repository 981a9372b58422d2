"""`wroformer plan`: the memory, communication and time that a run takes, on devices that need not exist."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.cli.arguments import add_verbose, mesh, percent, positive, seconds_or_max
from wroformer_jax.cli.output import EXIT_OK, print_out, say
from wroformer_jax.cli.plan_settings import planned_settings, planned_target
from wroformer_jax.cli.plan_tables import duration, tables
from wroformer_jax.cli.planner import Planner
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.planning.plans import Plan
    from wroformer_jax.planning.search import Limits

_HELP = """
Nothing is run, and no data is read. XLA compiles the program; it knows the memory of each device and
refuses what does not fit. At the published size that takes half a minute; --seconds max compiles about four times.
No TPU is needed, but libtpu must be installed: it compiles for every TPU on a CPU.

Memory and bytes sent are XLA's numbers for this very program. FLOPs are counted from the settings. The time of a step
is an estimate from data sheets, never measured. --time compiles to the end, which takes minutes, and counts for each
part of the model how long its machine code takes.

Example:
  wroformer plan --topology v5e:4x4 --config finetune_wsa --seconds max
  wroformer plan --topology v5e:1x1 --config finetune_wsa --inference --time --picture time.png
"""


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    plan = commands.add_parser(
        "plan",
        help="show what a training run needs of a TPU slice, without having one",
        description="Compiles the training step (or the forward pass) of a config for a TPU slice or for this\n"
        "machine's devices, and says what it takes: memory, communication, FLOPs, and the shortest time of a step.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(run=run, goes_on=False)
    add = plan.add_argument
    add("--config", required=True, metavar="NAME|FILE.py", help="the settings, as `wroformer train` takes them")
    add("--topology", metavar="NAME", help="a TPU slice such as v5e:4x4 (default: this machine's devices)")
    add("--seconds", type=seconds_or_max, metavar="N|max", help="length of an example; 'max' finds the longest")
    add(
        "--mesh",
        type=mesh,
        metavar="data=N,fsdp=N,seq=N",
        help="axes that are left out are 1; one may be -1, for the rest of the devices",
    )
    add("--time-mixer", metavar="NAME", help="windowed_sink, full or naive, in place of the config's")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another value, as in model.window=20; may be repeated",
    )
    add(
        "--init", metavar="DIR|FILE", help="plan for the model of this directory or checkpoint; only its settings count"
    )
    add("--inference", action="store_true", help="plan separating the examples in one pass instead of training")
    add("--no-teacher", action="store_true", help="leave out the config's teacher")
    add("--memory", type=positive, metavar="GIB", help="plan for devices with that much memory")
    add("--tolerance", type=percent, default=5.0, metavar="PERCENT", help="of --seconds max (default: 5)")
    add("--time", action="store_true", help="count the time of each part on the TPU slice (minutes)")
    add("--picture", type=Path, metavar="FILE.png", help="with --time: draw the time of each part")
    add("--json", type=Path, metavar="FILE", help="write the whole plan as JSON, too")
    add_verbose(plan)


def run(args: argparse.Namespace) -> int:
    """Checks all settings, which is quick, then compiles and prints tables."""
    from wroformer_jax.planning.plans import settle
    from wroformer_jax.training.state import time_of

    if args.topology:
        import jax

        # The devices here only trace. Without this JAX looks for a TPU as soon as libtpu is installed.
        jax.config.update("jax_platforms", "cpu")
    _check_time(args)
    config, batch_size = planned_settings(args)
    for name, path in (("--json", args.json), ("--picture", args.picture)):
        if path:
            _check_file(name, path)
    target = planned_target(args)
    batch_of_config = config.batch_size
    config, mesh = settle(config, target, batch_size=batch_size)
    if config.batch_size != batch_of_config:
        say(
            f"planning a batch of {config.batch_size}, the least that the mesh takes; the config's is "
            f"{batch_of_config} (--set batch_size={batch_of_config})"
        )
    planner = Planner(config, mesh, target, inference=args.inference, timed=args.time)
    if args.seconds == "max":
        found, limits = planner.longest(args.tolerance / 100)
    else:
        if not args.inference:
            time_of(config, mesh)  # refuses what the mesh cannot cut before anything is compiled
        found, limits = planner.at(config.seconds), None
    print_out(tables(found, limits, verbose=args.verbose))
    if config.batch_size != batch_of_config:
        print_out(f"\nNot planned: the config's batch of {batch_of_config} (--set batch_size={batch_of_config})")
    if args.json:
        _write_json(args.json, found, limits)
    if args.picture:
        _draw(args.picture, found)
    return EXIT_OK


def _check_file(option: str, path: Path) -> None:
    """Refuses a file that cannot be written, before compiling takes minutes."""
    if path.is_dir() or not path.parent.is_dir():
        reason = f"{path} is a folder" if path.is_dir() else f"{path.parent} is not a folder"
        raise InputError(f"{option} {path} cannot be written: {reason}")


def _check_time(args: argparse.Namespace) -> None:
    """Refuses what --time and --picture cannot do, before anything is compiled."""
    if args.time and not args.topology:
        raise InputError("--time counts the machine code of TPUs: name a --topology")
    if args.picture and not args.time:
        raise InputError("--picture draws what --time counts: add --time")


def _draw(path: Path, found: Plan) -> None:
    from wroformer_jax.planning.time_picture import save_times

    assert found.time is not None, "--picture comes with --time"
    what = "forward pass" if found.inference else "training step"
    try:
        save_times(
            path, found.time, title=f"{what}, {found.config.batch_size} x {duration(found.seconds)}, {found.target}"
        )
    except OSError as error:
        raise InputError(f"--picture {path} cannot be written: {error.strerror}") from error


def _write_json(path: Path, found: Plan, limits: Limits | None) -> None:
    from wroformer_jax.io.files import replacing

    described = found.to_dict()
    if limits:
        described["longest"] = {name: one and dataclasses.asdict(one) for name, one in limits._asdict().items()}
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--json {path} cannot be written: {error.strerror}") from error
