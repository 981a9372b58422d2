"""`wroformer inspect`: the parameters, settings, checkpoints and curve of a training run or model directory."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wroformer_jax.cli.arguments import add_verbose
from wroformer_jax.cli.output import EXIT_OK, print_out
from wroformer_jax.cli.tables import Row, aligned
from wroformer_jax.config.checks import flattened

if TYPE_CHECKING:
    from wroformer_jax.config.model import ModelConfig
    from wroformer_jax.workdir.inspection import Inspection, Parameter

_HELP = """
The command reads no weights, so it is quick whatever the model's size. It leaves the devices alone, so it may be used
while the run goes on. Counts are without the padding of narrow bands. A checkpoint that lacks files is reported as
damaged; errors inside its arrays show when they are loaded.
"""
_ROWS = 20  # of the curve
_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 60  # characters of a sparkline
_SECONDS = 8  # of audio that the compute is given for, as in the papers


def add_to(commands: Any) -> None:
    """Adds the command to the parser's."""
    inspect = commands.add_parser(
        "inspect",
        help="show the parameters, settings, checkpoints and curve of a training run",
        description="Shows the parameters, the settings, the checkpoints and the curve of a training run; of a model "
        "directory, parameters and settings.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.set_defaults(run=run, goes_on=False)
    inspect.add_argument("workdir", metavar="WORKDIR", help="of the run, or a model directory")
    inspect.add_argument("--json", action="store_true", help="print JSON, with all records of the curve")
    add_verbose(inspect)


def run(args: argparse.Namespace) -> int:
    """Prints tables, or JSON."""
    import jax

    from wroformer_jax.workdir.inspection import inspect_directory, parameters

    jax.config.update("jax_platforms", "cpu")  # the devices belong to the run that is inspected
    found = inspect_directory(args.workdir)
    arrays = parameters(found.model)
    print_out(_json(found, arrays) if args.json else _text(found, arrays))
    return EXIT_OK


def _text(found: Inspection, arrays: Sequence[Parameter]) -> str:
    sections = [_parameters(arrays), _compute(found.model), _settings("MODEL", found.model.to_dict())]
    if found.training is not None:
        sections += [_settings("TRAINING", found.training), _checkpoints(found), _curve(found)]
    return "\n\n".join(sections)


def _json(found: Inspection, arrays: Sequence[Parameter]) -> str:
    from wroformer_jax.model.flops import forward_flops

    described = {
        "directory": str(found.directory),
        "parameters": [array._asdict() for array in arrays],
        "num_parameters": sum(array.count for array in arrays if array.trained),
        "forward_flops": {"seconds": _SECONDS, **forward_flops(found.model, _frames(found.model))},
        "model": found.model.to_dict(),
        "training": found.training,
        "checkpoints": [step._asdict() for step in found.checkpoints],
        "newest": found.newest,
        "best": found.best,
        "records": [{name: _or_null(value) for name, value in record.items()} for record in found.records],
    }
    return json.dumps(described, indent=1)


def _parameters(arrays: Sequence[Parameter]) -> str:
    total = sum(array.count for array in arrays if array.trained)

    def row(name: str, shape: str, dtype: str, members: Iterable[Parameter]) -> Row:
        count = sum(array.count for array in members if array.trained)
        return name, shape, dtype, f"{count:,}", f"{count / total:.1%}"

    rows: list[Row] = [("PARAMETERS", "SHAPE", "DTYPE", "NUMBER", "SHARE")]
    for module in dict.fromkeys(array.module for array in arrays):
        members = [array for array in arrays if array.module == module]
        if len(members) > 1:
            rows.append(row(module, "", "", members))
        for array in members:
            name = "  " + array.name.removeprefix(f"{module}/") if len(members) > 1 else array.name
            line = row(name, str(array.shape), array.dtype, [array])
            rows.append(line if array.trained else (*line[:3], "constant", ""))
    rows.append(row("total", "", "", arrays))
    return aligned(rows, left=3)


def _compute(config: ModelConfig) -> str:
    import dataclasses

    from wroformer_jax.model.flops import forward_flops, published_score_entries

    flops = forward_flops(config, _frames(config))
    total = sum(flops.values())
    rows: list[Row] = [(f"COMPUTE OF {_SECONDS} s, FORWARD", "GFLOP", "SHARE")]
    rows += [(name, f"{number / 1e9:,.1f}", f"{number / total:.1%}") for name, number in flops.items()]
    rows.append(("total", f"{total / 1e9:,.1f}", "100.0%"))
    table = aligned(rows)
    if config.time_mixer != "windowed_sink":
        return table
    frames = _frames(config)
    ours = published_score_entries(config, frames)
    full = published_score_entries(dataclasses.replace(config, time_mixer="full"), frames)
    return f"{table}\n{ours:,} scores a head along time; full attention has {full:,}, {full / ours:.1f} times as many"


def _settings(title: str, fields: Mapping[str, Any]) -> str:
    return aligned([(title, ""), *((name, json.dumps(value)) for name, value in flattened(fields).items())], left=2)


def _checkpoints(found: Inspection) -> str:
    import datetime

    if not found.checkpoints:
        return "CHECKPOINTS\nnone yet"
    rows: list[Row] = [("CHECKPOINTS", "SAVED", "MB", "uSDR", "")]
    for step in found.checkpoints:
        when = datetime.datetime.fromtimestamp(step.saved).strftime("%Y-%m-%d %H:%M:%S") if step.saved else "-"
        score = "-" if step.score is None else f"{step.score:.2f} dB"
        marks = [mark for mark, name in (("newest", found.newest), ("best", found.best)) if name == step.name]
        rows.append((step.name, when, f"{step.num_bytes / 1e6:,.1f}", score, step.problem or ", ".join(marks)))
    return aligned(rows, left=2, last_left=True)


def _curve(found: Inspection) -> str:
    loss, sdr = found.curve("train", "loss"), found.curve("validation", "usdr")
    if not loss and not sdr:
        return "CURVE\nno step is logged yet"
    lines = [aligned(_curve_rows(loss, sdr)), ""]
    for name, curve, unit in (("loss", loss, ""), ("uSDR", sdr, " dB")):
        if curve:
            (_, first), (_, last) = curve[0], curve[-1]
            lines.append(f"{name}  {_sparkline([value for _, value in curve])}  {first:.4g} to {last:.4g}{unit}")
    steps = max(step for step, _ in (*loss, *sdr))
    picture = found.directory / "curve.png"
    lines.append(f"step {steps} of {(found.training or {}).get('steps', '?')} is the last one in the log")
    lines.append(str(picture) if picture.exists() else f"{picture} is written at the end of the run")
    return "\n".join(lines)


def _curve_rows(loss: Sequence[tuple[int, float]], sdr: Sequence[tuple[int, float]]) -> list[Row]:
    """Returns a row for some steps: the mean loss since the row above, and the step's uSDR if it was validated."""
    from wroformer_jax.workdir.inspection import thinned

    scores = dict(sdr)
    logged = [step for step, _ in loss]
    steps = {*thinned(list(scores), _ROWS - 1), *logged[-1:]}
    if len(steps) < _ROWS // 2:  # few validations, or none
        steps |= {*thinned(logged, _ROWS // 2)}
    rows: list[Row] = [("CURVE", "MEAN LOSS", "uSDR")]
    above = -1
    for step in sorted(steps):
        since = [value for there, value in loss if above < there <= step]
        mean = f"{sum(since) / len(since):.4f}" if since else "-"
        rows.append((str(step), mean, f"{scores[step]:.2f} dB" if step in scores else "-"))
        above = step
    return rows


def _sparkline(values: Sequence[float]) -> str:
    from wroformer_jax.workdir.inspection import thinned

    shown = [values[i] for i in thinned(range(len(values)), _SPARKS)]
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def _frames(config: ModelConfig) -> int:
    from wroformer_jax.model.flops import num_frames

    return num_frames(config, _SECONDS * config.sample_rate)


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
