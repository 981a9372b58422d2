"""The command behind convert_torch_checkpoint.py: weights from PyTorch to JAX and back, bit for bit."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from wroformer_jax.checkpoints.loading import read, write_torch
from wroformer_jax.checkpoints.torch_files import CHECKPOINT_SUFFIXES
from wroformer_jax.cli.output import log_to_stdout
from wroformer_jax.cli.parser import ArgumentParser
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.files import refuse_existing

PROGRAM = "convert_torch_checkpoint.py"
DEFAULT_WINDOW = 10  # frames, as published
DEFAULT_SINKS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      The exit status: 0, 2 when the input cannot be used, or 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        with log_to_stdout():
            arguments.run(arguments)
    except InputError as error:
        if arguments.verbose:
            traceback.print_exc()
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    return 0


def to_jax(arguments: argparse.Namespace) -> None:
    """Writes a model directory from any source, with windowed sink attention put in if asked."""
    from wroformer_jax.checkpoints.model_dir import save_model
    from wroformer_jax.model.params import add_windowed_sinks

    if arguments.dst.suffix in CHECKPOINT_SUFFIXES:
        raise InputError(f"{arguments.dst} is named like a PyTorch file, but to-jax writes a directory")
    refuse_existing(arguments.dst, overwrite=arguments.overwrite)
    print(f"reading {arguments.src}", flush=True)
    config, params, layout = read(arguments.src, config=arguments.config)
    notes = []
    if arguments.window is not None or arguments.sinks is not None:
        window = DEFAULT_WINDOW if arguments.window is None else arguments.window
        sinks = DEFAULT_SINKS if arguments.sinks is None else arguments.sinks
        config, params = add_windowed_sinks(config, params, window=window, num_sinks=sinks, seed=arguments.seed)
        notes.append(("new", f"{sinks} sink tokens, random with seed {arguments.seed}: fine-tune before use"))
    print(f"writing {arguments.dst}", flush=True)
    save_model(arguments.dst, config, params, torch_layout=layout, overwrite=arguments.overwrite)
    _report(arguments, config, notes)
    print(f"\nnext: wroformer separate song.wav --checkpoint {arguments.dst} --output stems")


def to_torch(arguments: argparse.Namespace) -> None:
    """Writes a PyTorch file from any source, with the key names that the public PyTorch code expects."""
    if arguments.dst.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"{arguments.dst} must end in one of {', '.join(CHECKPOINT_SUFFIXES)}")
    refuse_existing(arguments.dst, overwrite=arguments.overwrite)
    print(f"reading {arguments.src}", flush=True)
    config, params, layout = read(arguments.src)
    print(f"writing {arguments.dst}", flush=True)
    write_torch(arguments.dst, config, params, layout, overwrite=arguments.overwrite)
    notes = [] if layout else [("assumed", "float32, keys in the order of the public PyTorch code")]
    _report(arguments, config, notes)
    load = "safetensors.torch.load_file" if arguments.dst.suffix == ".safetensors" else "torch.load"
    print(f"\nnext: in PyTorch, model.load_state_dict({load}({str(arguments.dst)!r}), strict=True)")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    jax_parser = commands.add_parser("to-jax", help="PyTorch file to model directory", description=to_jax.__doc__)
    jax_parser.add_argument("--config", metavar="YAML", help="the settings, a public YAML file of the model")
    group = jax_parser.add_argument_group(
        "windowed sink attention",
        "turns a full-attention model into one to be fine-tuned; either option does it",
    )
    group.add_argument("--window", type=int, help=f"frames that a frame sees around itself (default {DEFAULT_WINDOW})")
    group.add_argument("--sinks", type=int, help=f"new sink tokens (default {DEFAULT_SINKS})")
    group.add_argument("--seed", type=_seed, default=0, help="of the new sink tokens (default 0)")
    jax_parser.set_defaults(run=to_jax)

    torch_parser = commands.add_parser(
        "to-torch", help="model directory or workdir to PyTorch file", description=to_torch.__doc__
    )
    torch_parser.set_defaults(run=to_torch)

    kinds = "a PyTorch file, a model directory, a training workdir, hf://owner/repo/file or a known name"
    results = ((jax_parser, "the model directory"), (torch_parser, f"a {', '.join(CHECKPOINT_SUFFIXES)} file"))
    for command, result in results:
        command.add_argument("src", metavar="SRC", help=kinds)
        command.add_argument("dst", metavar="DST", type=Path, help=f"{result} to write")
        command.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
        command.add_argument("-v", "--verbose", action="store_true", help="show a traceback after an error")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _report(
    arguments: argparse.Namespace,
    config: ModelConfig,
    notes: list[tuple[str, str]],
) -> None:
    from wroformer_jax.model.params import num_parameters

    bands = "Mel-Band" if config.band_scheme == "mel" else "Band-Split"
    attention = (
        f"windowed sink, window {config.window}, {config.num_sinks} sinks"
        if config.time_mixer == "windowed_sink"
        else config.time_mixer
    )
    rows = [
        ("model", f"{bands} RoFormer, dim {config.dim}, depth {config.depth}, {config.num_bands} bands"),
        ("attention", attention),
        ("stems", ", ".join(config.stems)),
        ("audio", f"{'stereo' if config.channels == 2 else 'mono'}, {config.sample_rate} Hz"),
        ("parameters", f"{num_parameters(config):,}"),
        ("size", f"{_size_on_disk(arguments.dst) / 1e6:,.1f} MB in {arguments.dst}"),
        *notes,
    ]
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
