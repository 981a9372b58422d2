"""Compiles the training step for real TPU topologies, without a TPU, and reports the memory of each chip.

    pip install --no-deps libtpu==0.0.42.1
    python benchmarks/tpu_compile.py

Prints the plans for several topologies and meshes, with one example per chip. The columns are the memory per chip of
the state (parameters, moving average, optimiser), of XLA's buffers for the step (temporary), of both together (peak),
and the bytes that a chip sends in a step. The compiler refuses a program that does not fit; its row then says how much
memory it would need. A row takes minutes. With --teacher the step also learns from the masks of a full-attention
teacher.
"""

import argparse
import sys
from pathlib import Path

import jax
from recipes import read_recipe
from report import print_table, write_result

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.parallel.sharding import bytes_per_device
from wroformer_jax.planning.plans import DoesNotFit, plan, sent_bytes, settle
from wroformer_jax.planning.topology import find_topology
from wroformer_jax.training.state import abstract_state

ROOT = Path(__file__).parents[1]
GIB = 2**30
# (topology, chips along data, chips along fsdp)
CASES = (("v5e:2x2", 4, 1), ("v5e:2x2", 1, 4), ("v5e:16x16", 256, 1), ("v5e:16x16", 1, 256), ("v5e:16x16", 16, 16))


def settings(path: str, seconds: float, data: int, fsdp: int, *, with_teacher: bool) -> TrainingConfig:
    """Returns the config of a file for a mesh; reads no checkpoints."""
    config = read_recipe(ROOT / path)
    weights = {} if with_teacher else {"masks": 0.0}
    return config.with_changes(
        mesh={"data": data, "fsdp": fsdp, "seq": 1},
        seconds=seconds,
        optimizer={"accumulate": 1},
        loss={"weights": weights},
    )


def row(config: TrainingConfig, name: str) -> dict[str, object]:
    """Plans one row of the table."""
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
    parser.add_argument("--seconds", type=float, default=8.0, help="length of an example")
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
