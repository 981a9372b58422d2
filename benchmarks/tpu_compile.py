"""The training step compiled for real TPU topologies, without a TPU: what it takes of each chip's memory.

    pip install --no-deps libtpu==0.0.42.1
    python benchmarks/tpu_compile.py

A table of what `wroformer plan` says of several topologies and meshes, with one example a chip: bytes a chip of the
state (parameters, moving average, optimiser), of what XLA lays out for the step (temporary), of all together (peak),
and of what it sends to others in a step. A program that does not fit is refused by the compiler, and its row says how
much it would take. Minutes a row. With --teacher the step learns from the masks of a full-attention teacher, too.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import jax
from report import print_table, write_result

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.parallel.sharding import bytes_per_device
from wroformer_jax.planning.plans import DoesNotFit, plan, sent_bytes, settle
from wroformer_jax.planning.topology import find_topology
from wroformer_jax.training.state import abstract_state

ROOT = Path(__file__).parents[1]
GIB = 2**30
# Topology, chips along data and fsdp.
CASES = (("v5e:2x2", 4, 1), ("v5e:2x2", 1, 4), ("v5e:16x16", 256, 1), ("v5e:16x16", 1, 256), ("v5e:16x16", 16, 16))


def settings(path: str, seconds: float, data: int, fsdp: int, *, with_teacher: bool) -> TrainingConfig:
    """The config of a file for a mesh; its checkpoints are not read."""
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = TrainingConfig.from_dict(module.get_config().to_dict())
    weights = {} if with_teacher else {"masks": 0.0}
    return config.with_changes(
        mesh={"data": data, "fsdp": fsdp, "seq": 1},
        seconds=seconds,
        optimizer={"accumulate": 1},
        loss={"weights": weights},
    )


def row(config: TrainingConfig, name: str) -> dict[str, object]:
    """One row of the table."""
    target = find_topology(name)
    config, mesh = settle(config, target)
    sizes = {axis: size for axis, size in config.mesh.items() if axis != "seq"}
    state = bytes_per_device(abstract_state(config, mesh)) / GIB
    about = {"topology": name, **sizes, "state GiB a chip": state}
    try:
        found = plan(config, mesh, target)
    except DoesNotFit as refusal:
        needed = f"{refusal.needed / GIB:.3g}, refused" if refusal.needed else "refused"
        return {**about, "temporary GiB": "-", "peak GiB": needed, "sent GiB": "-", "compile s": "-"}
    return {
        **about,
        "temporary GiB": found.memory.activations / GIB,
        "peak GiB": found.memory.peak / GIB,
        "sent GiB": sent_bytes(found.collectives) / GIB,
        "compile s": found.compile_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/finetune_wsa.py")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each example")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="numbers of rows, from 0")
    parser.add_argument("--teacher", action="store_true", help="with a teacher")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    rows = []
    for name, data, fsdp in (CASES[number] for number in args.cases):
        rows.append(row(settings(args.config, args.seconds, data, fsdp, with_teacher=args.teacher), name))
        print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    write_result("tpu_compile_teacher" if args.teacher else "tpu_compile", f"python {' '.join(sys.argv)}", rows)


if __name__ == "__main__":
    main()
