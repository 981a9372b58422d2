"""Compares this package's speed and memory with PyTorch's, and with the best matrix product of the machine.

    python benchmarks/compare.py                           all rows on a CPU; hours at the published size
    python benchmarks/compare.py --only inference-8 parts  some rows; the others keep their last figures
    python benchmarks/compare.py --device gpu              rows for a GPU, products of bfloat16
    python benchmarks/compare.py --quick                   a small model and eager PyTorch, a minute; nothing is written

Needs the test extra. The peers are the public PyTorch package with full attention by scaled_dot_product_attention,
eager and compiled, and windowed sink attention by compiled flex_attention (see peers.py). Ours and the peers run in
turn, and the figures are ratios within rounds, ours divided by theirs, with their median and quartiles. A peer that
cannot run here is left out, and a line says why.

Rows: inference and training at some lengths (seconds), `memory` (the largest resident memory of a process, and the time
to compile), `parts` (where our forward pass takes its time, against the best product that numpy, torch and jax manage),
and `first-result` (`wroformer separate` of 10 s with the quickstart's model, with an empty and with a full cache of
compiled programs). The rows go to results/compare_DEVICE.json, docs/performance.md and its pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare_pages
from alternating import Run, alternate, compared, quartiles, seconds_of
from processes import measure, measure_wall, wroformer
from report import RESULTS, machine, print_table

from wroformer_jax.cli.processor import prepare_process
from wroformer_jax.config.model import ModelConfig

DOCS = Path(__file__).parents[1] / "docs"
OURS, FULL, COMPILED, FLEX = "ours", "PyTorch full, eager", "PyTorch full, compiled", "PyTorch windowed, flex"
ROWS = {
    "cpu": {"inference": (2, 8, 30, 60), "training": (2, 8), "memory": (8, 60), "parts": (8, 240)},
    "gpu": {"inference": (8, 60, 240), "training": (8, 60), "memory": (8, 60), "parts": (8, 240)},
}
QUICK = {"inference": (1,), "training": (1,), "memory": (1,), "parts": (1, 2)}
SMALL = {"num_bands": 12, "dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "dim_feed_forward": 128, "dim_mask": 128}
# Seconds; a training step on a longer example recomputes its blocks (remat "block"), ours and theirs, to fit 24 GB of
# memory on a CPU, 80 GB on a GPU.
KEPT = {"cpu": 2.5, "gpu": 10.0}


class Unavailable(Exception):
    """A peer cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is compared, and where.

    Attributes:
      config: the model.
      device: "cpu" or "gpu".
      rounds: how often each candidate runs.
      names: the candidates, ours first.
    """

    config: ModelConfig
    device: str
    rounds: int
    names: tuple[str, ...] = (OURS, FLEX, COMPILED, FULL)

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "gpu" else "cpu"


def make(bench: Bench, kind: str, name: str, seconds: float) -> Run:
    """Returns a candidate, ready to run.

    Args:
      bench: what is compared.
      kind: "inference" or "training".
      name: OURS or a peer.
      seconds: length of the audio.

    Raises:
      Unavailable: the peer cannot run here.
    """
    import ours

    config, remat = bench.config, seconds > KEPT[bench.device]
    if name == OURS:
        return ours.inference(config, seconds) if kind == "inference" else ours.training(config, seconds, remat=remat)
    try:
        import peers
    except ImportError as error:
        raise Unavailable(f"the test extra is not installed ({error})") from error
    if kind == "training" and name == FLEX and bench.device == "cpu":
        raise Unavailable("PyTorch's flex_attention has no backward pass on a CPU")
    mixture, targets = ours.noise(config, seconds)
    if name == FLEX:
        model = peers.windowed(config, bench.torch_device, seconds, remat=kind == "training" and remat)
    else:
        model = peers.full(config, bench.torch_device, compiled=name == COMPILED, remat=kind == "training" and remat)
    if kind == "training":
        return peers.training(model, mixture, targets, config.dtype)
    return peers.inference(model, mixture, config.dtype)


def started(bench: Bench, kind: str, name: str, seconds: float) -> Run | None:
    """Returns a candidate that has run once, or None after a line that says why it cannot run."""
    try:
        run = make(bench, kind, name, seconds)
        run()  # compiles
    except Exception as error:
        if name == OURS:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"{name}, {kind} of {seconds:g} s: left out, {reason[:200]}", file=sys.stderr, flush=True)
        return None
    return run


def timing_rows(bench: Bench, kind: str, seconds: float) -> list[dict[str, Any]]:
    """Times ours and the peers in turn."""
    runs = {name: run for name in bench.names if (run := started(bench, kind, name, seconds)) is not None}
    rows = compared(f"{kind}-{seconds:g}", alternate(runs, bench.rounds))
    return [row | _speed(bench, kind, str(row["what"]), seconds, row["s"]) for row in rows]


def _speed(bench: Bench, kind: str, name: str, seconds: float, taken: float) -> dict[str, Any]:
    """Returns the useful FLOP/s, recomputation not counted, and their share of the data sheet's if it is known."""
    import jax
    from ours import as_full

    from wroformer_jax.model.flops import forward_flops, num_frames
    from wroformer_jax.parallel.hardware import known_hardware

    config = as_full(bench.config) if name in (COMPILED, FULL) else bench.config
    flops = sum(forward_flops(config, num_frames(config, round(seconds * config.sample_rate))).values())
    speed = (1 if kind == "inference" else 3) * flops / taken
    hardware = known_hardware(jax.devices()[0].device_kind)
    share = {"MFU": f"{100 * speed / getattr(hardware, config.dtype):.1f} %"} if hardware else {}
    return {"GFLOP/s": round(speed / 1e9, 1), **share}


def memory_rows(bench: Bench, kind: str, seconds: float) -> list[dict[str, Any]]:
    """Runs each candidate in a process of its own: its memory, and how much longer its first run takes."""
    rows = []
    for name in bench.names:
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "found.json"
            settings = json.dumps(bench.config.to_dict())
            once = (kind, name, str(seconds), settings, str(found))
            command = [sys.executable, __file__, "--device", bench.device, "--once", *once]
            peak = measure(command)["peak MiB"]
            measured = json.loads(found.read_text())
        if "left out" in measured:
            print(f"{name}, memory at {seconds:g} s: left out, {measured['left out']}", file=sys.stderr, flush=True)
            continue
        rows.append(
            {
                "row": "memory",
                "audio s": seconds,
                "what": name,
                "peak GiB": measured.get("device GiB", peak / 1024),
                "first run s": measured["first run s"],
                "compiling s": measured["compiling s"],
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    for row in rows:
        row["ours / it"] = rows[0]["peak GiB"] / row["peak GiB"]
    return rows


def run_once(bench: Bench, kind: str, name: str, seconds: float) -> dict[str, Any]:
    """Runs a candidate twice in this process; returns the time of the first run and what it takes more."""
    try:
        run = make(bench, kind, name, seconds)
        first = seconds_of(run)
    except Exception as error:
        if name == OURS:
            raise
        return {"left out": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}
    found = {"first run s": first, "compiling s": max(0.0, first - seconds_of(run))}
    return found | ({"device GiB": _device_memory(name)} if bench.device == "gpu" else {})


def _device_memory(name: str) -> float:
    """Returns the most memory that was in use on the GPU in this process, in GiB."""
    if name == OURS:
        import jax

        return (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"] / 2**30
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


def first_result_rows(bench: Bench, quick: bool) -> list[dict[str, Any]]:
    """Times `wroformer separate` of 10 s with the quickstart's model, without and with compiled programs on disk."""
    from recipes import read_recipe
    from separation_memory import write_recording

    from wroformer_jax.checkpoints.model_dir import save_model
    from wroformer_jax.model.params import init_params
    from wroformer_jax.model.roformer import RoFormer

    config = bench.config if quick else read_recipe("quickstart.py").model
    times: dict[str, list[float]] = {"empty cache": [], "full cache": []}
    with tempfile.TemporaryDirectory() as folder:
        song, model = Path(folder) / "song.wav", Path(folder) / "model"
        save_model(model, config, init_params(RoFormer(config), 0))
        write_recording(song, 10)
        for number in range(bench.rounds):
            cache = Path(folder) / f"cache {number}"
            environment = {**os.environ, "WROFORMER_CACHE": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "true"}
            for name, taken in times.items():
                output = Path(folder) / f"{name} {number}"
                taken.append(
                    measure_wall(wroformer("separate", song, "--checkpoint", model, "--output", output), environment)
                )
    rows = []
    for name, taken in times.items():
        low, middle, high = quartiles(taken)
        rows.append(
            {
                "row": "first-result",
                "what": name,
                "s": middle,
                "quartiles": f"{low:.2f} to {high:.2f}",
                "rounds": len(taken),
            }
        )
    return rows


def rows_of(
    bench: Bench, lengths: dict[str, tuple[int, ...]], quick: bool
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Returns the rows that can be asked for, and what measures each."""
    import parts

    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    for kind in ("inference", "training"):
        for seconds in lengths[kind]:
            rows[f"{kind}-{seconds}"] = lambda kind=kind, seconds=seconds: timing_rows(bench, kind, seconds)
    rows["memory"] = lambda: [row for seconds in lengths["memory"] for row in memory_rows(bench, "inference", seconds)]
    rows["parts"] = lambda: parts.share_rows(bench.config, (lengths["parts"][0], lengths["parts"][1]), bench.rounds)
    if bench.device == "cpu":
        rows["first-result"] = lambda: first_result_rows(bench, quick)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=ROWS, default="cpu")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each candidate runs (default: 5)")
    parser.add_argument("--quick", action="store_true", help="a small model and one short length of each")
    parser.add_argument("--output", type=Path, help="a folder for JSON, page and pictures, instead of this repository")
    parser.add_argument("--once", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    _choose_device(args.device)
    dtype = "bfloat16" if args.device == "gpu" else "float32"
    if args.once:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # so that PyTorch compiles, too
        kind, name, seconds, settings, path = args.once
        bench = Bench(ModelConfig.from_dict(json.loads(settings)), args.device, 1)
        Path(path).write_text(json.dumps(run_once(bench, kind, name, float(seconds))))
        return
    config = ModelConfig.from_dict({"dtype": dtype, **(SMALL if args.quick else {})})
    names = (OURS, FULL) if args.quick else (OURS, FLEX, COMPILED, FULL)  # compiling takes PyTorch a minute
    bench = Bench(config, args.device, args.rounds, names)
    measures = rows_of(bench, QUICK if args.quick else ROWS[args.device], args.quick)
    if unknown := set(args.only or ()) - set(measures):
        sys.exit(f"no row {min(unknown)}; rows: {', '.join(measures)}")
    for name in args.only or measures:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = measures[name]()
        print_table(rows)
        if args.output or not args.quick:  # after each row, so that a later failure loses nothing
            _keep(args, name, rows)


def _keep(args: argparse.Namespace, name: str, rows: list[dict[str, Any]]) -> None:
    """Replaces the figures of one row in the JSON, and draws the page anew."""
    path = (args.output or RESULTS) / f"compare_{args.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text())["rows"] if path.exists() else {}
    kept[name] = {"machine": machine(), "rows": rows}
    command = "python benchmarks/compare.py" + (" --device gpu" if args.device == "gpu" else "")
    path.write_text(json.dumps({"command": command, "rows": kept}, indent=2) + "\n")
    compare_pages.write(args.output or DOCS, args.device, command, kept)


def _choose_device(device: str) -> None:
    """Ends the command with a sentence if the device is not there."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs its share of a GPU
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    else:
        try:
            jax.devices("gpu")
        except RuntimeError:
            sys.exit('JAX finds no GPU: run this where there is one, with `pip install -e ".[cuda,test]"`')
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"PyTorch {torch.__version__} finds no GPU: install a build of it with CUDA")


if __name__ == "__main__":
    prepare_process(sys.orig_argv)  # as commands do; the peers get the large pages of memory, too
    main()
