"""`wroformer convert`, or convert_torch_checkpoint.py in a clone: weights from and to PyTorch, bit for bit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wroformer_jax.cli.arguments import add_verbose, whole_number
from wroformer_jax.cli.output import EXIT_OK, log_to_stdout, with_exit_status
from wroformer_jax.cli.parser import ArgumentParser
from wroformer_jax.cli.tables import aligned
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from wroformer_jax.config.model import ModelConfig

DEFAULT_WINDOW = 10  # frames, as published
DEFAULT_SINKS = 8

_ABOUT = "Converts weights from PyTorch to JAX and back, bit for bit."
_SOURCES = "a PyTorch file, a model directory, a training workdir, hf://owner/repo/file or a known name"


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    _add_directions(commands.add_parser("convert", help="convert weights from and to PyTorch", description=_ABOUT))


def main(argv: Sequence[str], *, program: str) -> int:
    """Runs the command by itself.

    Args:
      argv: the arguments behind the program's name.
      program: the start of messages.

    Returns:
      The exit status: 0, 2 when the input cannot be used, or 130 when interrupted.
    """
    parser = ArgumentParser(prog=program, description=_ABOUT)
    _add_directions(parser)
    return with_exit_status(parser.parse_args(argv), program=program)


def to_jax(args: argparse.Namespace) -> int:
    """Writes a model directory from any source, and swaps in windowed sink attention if asked."""
    from wroformer_jax.checkpoints.loading import read
    from wroformer_jax.checkpoints.model_dir import save_model
    from wroformer_jax.checkpoints.torch_files import CHECKPOINT_SUFFIXES
    from wroformer_jax.io.files import refuse_existing
    from wroformer_jax.model.params import add_windowed_sinks

    if args.dst.suffix in CHECKPOINT_SUFFIXES:
        raise InputError(f"{args.dst} is named like a PyTorch file, but to-jax writes a directory")
    refuse_existing(args.dst, overwrite=args.overwrite)
    notes = []
    with log_to_stdout():
        print(f"reading {args.src}", flush=True)
        config, params, layout = read(args.src, config=args.config)
        if args.window is not None or args.sinks is not None:
            window = DEFAULT_WINDOW if args.window is None else args.window
            sinks = DEFAULT_SINKS if args.sinks is None else args.sinks
            config, params = add_windowed_sinks(config, params, window=window, num_sinks=sinks, seed=args.seed)
            notes.append(("new", f"{sinks} sink tokens, random with seed {args.seed}: fine-tune before use"))
        print(f"writing {args.dst}", flush=True)
        save_model(args.dst, config, params, torch_layout=layout, overwrite=args.overwrite)
    _print_model(config, args.dst, notes)
    print(f"\nnext: wroformer separate song.wav --checkpoint {args.dst} --output stems")
    return EXIT_OK


def to_torch(args: argparse.Namespace) -> int:
    """Writes a PyTorch file from any source, with the key names that the public PyTorch code expects."""
    from wroformer_jax.checkpoints.loading import read, write_torch
    from wroformer_jax.checkpoints.torch_files import CHECKPOINT_SUFFIXES
    from wroformer_jax.io.files import refuse_existing

    if args.dst.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"{args.dst} must end in one of {', '.join(CHECKPOINT_SUFFIXES)}")
    refuse_existing(args.dst, overwrite=args.overwrite)
    with log_to_stdout():
        print(f"reading {args.src}", flush=True)
        config, params, layout = read(args.src)
        print(f"writing {args.dst}", flush=True)
        write_torch(args.dst, config, params, layout, overwrite=args.overwrite)
    notes = [] if layout else [("assumed", "float32, keys in the order of the public PyTorch code")]
    _print_model(config, args.dst, notes)
    load = "safetensors.torch.load_file" if args.dst.suffix == ".safetensors" else "torch.load"
    print(f"\nnext: in PyTorch, model.load_state_dict({load}({str(args.dst)!r}), strict=True)")
    return EXIT_OK


def _add_directions(parser: argparse.ArgumentParser) -> None:
    directions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, about, result in (
        ("to-jax", to_jax, "PyTorch file to model directory", "the model directory"),
        ("to-torch", to_torch, "model directory or workdir to PyTorch file", "the PyTorch file"),
    ):
        direction = directions.add_parser(name, help=about, description=run.__doc__)
        direction.set_defaults(run=run, goes_on=False)
        direction.add_argument("src", metavar="SRC", help=_SOURCES)
        direction.add_argument("dst", metavar="DST", type=Path, help=f"{result} to write")
        direction.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
        if run is to_jax:
            direction.add_argument("--config", metavar="YAML", help="the settings, a public YAML file of the model")
            _add_sink_options(direction)
        add_verbose(direction)


def _add_sink_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "windowed sink attention",
        "--window or --sinks turns a full-attention model into a windowed one, to be fine-tuned",
    )
    group.add_argument("--window", type=int, help=f"frames that each frame attends to (default: {DEFAULT_WINDOW})")
    group.add_argument("--sinks", type=int, help=f"new sink tokens (default: {DEFAULT_SINKS})")
    group.add_argument("--seed", type=whole_number, default=0, help="of the new sink tokens (default: 0)")


def _print_model(config: ModelConfig, path: Path, notes: Sequence[tuple[str, str]]) -> None:
    from wroformer_jax.model.params import num_parameters

    attention = config.time_mixer
    if config.time_mixer == "windowed_sink":
        attention = f"windowed sink, window {config.window}, {config.num_sinks} sinks"
    bands = "Mel-Band" if config.band_scheme == "mel" else "Band-Split"
    rows = [
        ("model", f"{bands} RoFormer, dim {config.dim}, depth {config.depth}, {config.num_bands} bands"),
        ("attention", attention),
        ("stems", ", ".join(config.stems)),
        ("audio", f"{'stereo' if config.channels == 2 else 'mono'}, {config.sample_rate} Hz"),
        ("parameters", f"{num_parameters(config):,}"),
        ("size", f"{_size_on_disk(path) / 1e6:,.1f} MB in {path}"),
        *notes,
    ]
    print("\n" + aligned(rows, left=2, indent=2))


def _size_on_disk(path: Path) -> int:
    """Returns the bytes of a file or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
