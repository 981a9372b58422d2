"""`wroformer plan`: what a run takes of devices that need not be there, before it is paid for."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.commands.plan_tables import GIB, duration, gib, tables
from wroformer_jax.commands.shared import EXIT_OK, add_verbose, print_out, say
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from wroformer_jax.config.training import TrainingConfig
    from wroformer_jax.planning.longest_fit import Attempt, Limits
    from wroformer_jax.planning.plans import Plan
    from wroformer_jax.planning.topology import Target
from wroformer_jax.planning.lengths import shortest, with_seconds

_HELP = """
Nothing is run and no checkpoint or data is read: the program is compiled by XLA, which knows the memory of each device,
and refuses what does not fit. At the published size that takes half a minute; --seconds max does it four times or so.
TPUs need not be there, but libtpu must be: it compiles for all of them on a CPU.

Memory and what is sent are XLA's numbers for this very program. FLOPs are counted from the settings. The time of a step
is an estimate from data sheets, never measured.

Example:
  wroformer plan --topology v5e:4x4 --config configs/finetune_wsa.py --seconds max
"""
_ANY = 1.0  # tolerance of the length that is found to fit in place of one that does not


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
    add("--config", type=Path, required=True, metavar="FILE.py", help="the settings, as train.py takes them")
    add("--topology", metavar="NAME", help="a TPU slice such as v5e:4x4 (default: the devices that are here)")
    add("--seconds", type=_seconds, metavar="N|max", help="of each example, or 'max': find the longest that fits")
    add(
        "--mesh", type=_mesh, metavar="data=N,fsdp=N,seq=N", help="axes left out are 1, one of them may be -1: the rest"
    )
    add("--time-mixer", metavar="NAME", help="windowed_sink, full or naive, in place of the config's")
    add(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another value, as in model.window=20; repeat"
    )
    add("--inference", action="store_true", help="plan separating the examples in one pass, not training")
    add("--no-teacher", action="store_true", help="leave the teacher out that the config has")
    add("--memory", type=_positive, metavar="GIB", help="plan for devices of so much memory")
    add("--tolerance", type=_percent, default=5.0, metavar="PERCENT", help="of --seconds max (default: 5)")
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
    config, batch_size = _settings(args)
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):  # before minutes are spent
        wrong = f"{args.json} is a folder" if args.json.is_dir() else f"{args.json.parent} is not a folder"
        raise InputError(f"--json {args.json} cannot be written: {wrong}")
    target = _target(args)
    of_file = config.batch_size
    config, mesh = settle(config, target, batch_size=batch_size)
    if config.batch_size != of_file:
        say(
            f"planning a batch of {config.batch_size}, the least that the mesh takes; the config's is {of_file} "
            f"(--set batch_size={of_file})"
        )
    if args.seconds != "max" and not args.inference:
        time_of(config, mesh)  # what cannot be cut is refused before anything is compiled
    planner = _Planner(config, mesh, target, inference=args.inference)
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


class _Planner:
    """Compiles a run at different lengths and says so."""

    def __init__(self, config: TrainingConfig, mesh: Mesh, target: Target, *, inference: bool) -> None:
        self.config, self.mesh, self.target, self.inference = config, mesh, target, inference
        self.plans: dict[float, Plan] = {}  # that fit, by the length asked for

    def at(self, seconds: float) -> Plan:
        """The plan of one length.

        Raises:
          InputError: it does not fit; the sentence says by how much, and what does.
        """
        attempt = self._attempt(seconds)
        if not attempt.fits:
            raise InputError(self._refusal(attempt))
        return self.plans[seconds]

    def search(self, tolerance: float) -> Limits:
        """The longest that fits.

        Raises:
          InputError: nothing fits, or the memory of the devices is not known.
        """
        if self.target.memory is None:
            raise InputError("the memory of these devices is not known: name a --topology, or give --memory GIB")
        limits = self._longest_fit(self.config.seconds, tolerance)
        if limits.fits is None:
            raise InputError(self._nothing_fits(limits.too_long))
        return limits

    def _attempt(self, seconds: float) -> Attempt:
        import time

        from wroformer_jax.planning.longest_fit import Attempt
        from wroformer_jax.planning.plans import DoesNotFit, plan

        say(f"{duration(seconds)}: compiling ...")
        start = time.perf_counter()
        available = ""
        try:
            found = plan(with_seconds(self.config, seconds), self.mesh, self.target, inference=self.inference)
        except DoesNotFit as refusal:
            attempt = Attempt(seconds, refusal.needed, fits=False)
            what = "does not fit"
        else:
            self.plans[seconds] = found
            attempt = Attempt(seconds, found.memory.peak, fits=True)
            what = "fits" if self.target.memory else "compiled"
        if self.target.memory:
            available = f" of {gib(self.target.memory)}"
        needed = f", {gib(attempt.needed)}{available} GiB a device" if attempt.needed else ""
        say(f"{duration(seconds)}: {what}{needed} ({time.perf_counter() - start:.0f} s)")
        return attempt

    def _longest_fit(self, first: float, tolerance: float, longest: float | None = None, known: Any = ()) -> Limits:
        from wroformer_jax.config.training import LONGEST_CROP
        from wroformer_jax.planning.longest_fit import longest_fit

        return longest_fit(
            self._attempt,
            first,
            shortest=shortest(self.config, self.mesh),
            longest=longest or LONGEST_CROP,
            available=self.target.memory,
            at_rest=self._at_rest,
            tolerance=tolerance,
            known=known,
        )

    @functools.cached_property
    def _at_rest(self) -> int:
        """Bytes of a device that are taken whatever the audio."""
        from wroformer_jax.parallel.sharding import bytes_per_device
        from wroformer_jax.training.state import abstract_state

        state = abstract_state(self.config, self.mesh)
        return bytes_per_device(state.params if self.inference else state)

    def _refusal(self, refused: Attempt) -> str:
        if self.target.memory is None:
            return f"{duration(refused.seconds)} do not fit into {self.target.name}"
        limits = self._longest_fit(refused.seconds, _ANY, refused.seconds, [refused])
        if limits.fits is None:
            return self._nothing_fits(limits.too_long)
        fits = limits.fits.seconds
        return (
            f"{duration(refused.seconds)} do not fit into {self.target.name}{self._by_how_much(refused)}. "
            f"{duration(fits)} fit (--seconds {fits:g}); --seconds max finds the longest. {self._remedies()}"
        )

    def _nothing_fits(self, refused: Attempt) -> str:
        return (
            f"not even {duration(refused.seconds)} fit into {self.target.name}{self._by_how_much(refused)}; the state "
            f"alone is {gib(self._at_rest)} GiB. {self._remedies()}"
        )

    def _remedies(self) -> str:
        """What takes less, on the same devices if the config has not done it yet."""
        model = self.config.model
        settings = []
        if not model.places_at_once and model.remat != "dots":
            settings.append("model.places_at_once=16384")
        if model.remat != "offload" and not self.inference:
            settings.append("model.remat=offload")
        same = f"On the same devices --set {' and --set '.join(settings)} take less; " if settings else ""
        return f"{same}{'larger' if same else 'Larger'} fsdp or seq in --mesh leave less on each"

    def _by_how_much(self, refused: Attempt) -> str:
        if refused.needed is None:
            return ""
        over = refused.needed - self.target.memory
        needed, available = gib(refused.needed), gib(self.target.memory)
        return f": they take {needed} of {available} GiB a device, {gib(over)} GiB too much"


# --- settings


def _settings(args: argparse.Namespace) -> tuple[TrainingConfig, int | None]:
    """The config with the changes that were asked for, and the size of a batch if one was."""
    from wroformer_jax.config.model import ModelConfig
    from wroformer_jax.config.training import TrainingConfig

    fields = _read(args.config)
    for assignment in args.set:
        _assign(fields, assignment)
    model = fields.get("model")
    if args.time_mixer and isinstance(model, dict):
        model["time_mixer"] = args.time_mixer
        windows = args.time_mixer == "windowed_sink"
        model["num_sinks"] = (model.get("num_sinks") or ModelConfig.num_sinks) if windows else 0
        if not windows:  # patterns of the sinks would match nothing; scales take no memory
            fields["learning_rate_scales"] = ()
    if args.mesh:
        fields["mesh"] = args.mesh
    if args.no_teacher and isinstance(fields.get("loss_weights"), dict):
        fields["loss_weights"]["masks"] = 0.0
    batch_size = fields.get("batch_size") if any(text.startswith("batch_size=") for text in args.set) else None
    config = TrainingConfig.from_dict(fields)
    if isinstance(args.seconds, float):
        config = with_seconds(config, args.seconds)
    return config, batch_size


def _read(path: Path) -> dict[str, Any]:
    """The fields that the file's get_config() gives."""
    import importlib.util

    from ml_collections import ConfigDict

    if path.is_dir():
        raise InputError(f"{path} is a folder: --config takes a Python file as train.py does")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("wroformer_plan_config", path)
    if spec is None:
        raise InputError(f"{path} is not a Python file: --config takes one as train.py does")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        settings = module.get_config()
    except InputError:
        raise
    except Exception as error:  # whatever a file of settings may do wrong
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}") from error
    if not isinstance(settings, ConfigDict):
        raise InputError(f"{path}: get_config() gives {type(settings).__name__}, expected a ConfigDict")
    return settings.to_dict()


def _assign(fields: dict[str, Any], assignment: str) -> None:
    """Carries FIELD=VALUE out; unknown names are left to the config to refuse, which knows similar ones."""
    import ast

    name, equals, text = assignment.partition("=")
    if not equals or not name:
        raise InputError(f"--set {assignment}: expected FIELD=VALUE, as in model.window=20")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a word
        value = text
    *parents, last = name.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise InputError(f"--set {assignment}: {parent} has no fields")
    fields[last] = value


def _target(args: argparse.Namespace) -> Target:
    from wroformer_jax.planning.topology import local_devices, topology

    target = topology(args.topology) if args.topology else local_devices()
    return target._replace(memory=int(args.memory * GIB)) if args.memory else target


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


# --- options


def _seconds(text: str) -> float | str:
    return text if text == "max" else _number(text, "a positive number of seconds, nor 'max'")


def _positive(text: str) -> float:
    return _number(text, "a positive number")


def _percent(text: str) -> float:
    percent = _number(text, "a percentage from 1 to 50")
    if not 1 <= percent <= 50:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 1 to 50")
    return percent


def _number(text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return number


def _mesh(text: str) -> Mapping[str, int]:
    from wroformer_jax.config.training import MESH_AXES

    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(f'{axis}=N' for axis in MESH_AXES)}")
        sizes[axis] = int(size)
    return sizes
