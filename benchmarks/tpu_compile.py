"""The training step compiled for real TPU topologies, without a TPU: what it takes of each chip's memory.

    pip install --no-deps libtpu==0.0.42.1
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_compile.py

For each topology and mesh, one example a chip: bytes a chip of the state (parameters, moving average, optimiser) as
laid out, and what XLA's compiler counts of temporaries, and of arguments and temporaries together (peak). A program
that does not fit is refused by the compiler, and that is what its row says. Minutes a row. With --teacher the step
learns from the masks of a full-attention teacher, too.
"""

import argparse
import dataclasses
import importlib.util
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from report import print_table, write_result

from wroformer_jax.model import RoFormer, abstract_params
from wroformer_jax.sharding import batch_sharding, bytes_per_device, make_mesh, param_shardings, replicated
from wroformer_jax.train_step import abstract_state, build_train_step, state_shardings
from wroformer_jax.training_config import TrainingConfig

ROOT = Path(__file__).parents[1]
GIB = 2**30
# Topology, chips along data and fsdp.
CASES = (("v5e:2x2", 4, 1), ("v5e:2x2", 1, 4), ("v5e:16x16", 256, 1), ("v5e:16x16", 1, 256), ("v5e:16x16", 16, 16))


def settings(path: str, seconds: float, data: int, fsdp: int) -> TrainingConfig:
    """The config of a file, for one example a chip; its checkpoints are not read."""
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = module.get_config().to_dict()
    fields |= {"mesh": {"data": data, "fsdp": fsdp, "seq": 1}, "batch_size": data * fsdp, "seconds": seconds}
    fields |= {"init": "", "accumulate": 1}
    return TrainingConfig.from_dict(fields)


def compiled(config: TrainingConfig, topology: str, *, with_teacher: bool) -> dict[str, object]:
    """One row of the table."""
    devices = topologies.get_topology_desc(topology, "tpu").devices
    mesh = make_mesh(config.mesh, devices)
    state = abstract_state(config, mesh)
    shape = (config.batch_size, config.model.channels, config.crop_samples)
    batch = {
        "mixture": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh)),
        "targets": jax.ShapeDtypeStruct(
            (shape[0], config.model.num_stems, *shape[1:]), jnp.float32, sharding=batch_sharding(mesh)
        ),
    }
    row = {"topology": topology, **{axis: size for axis, size in config.mesh.items() if axis != "seq"}}
    row["state GiB a chip"] = bytes_per_device(state) / GIB
    teacher, teacher_params = None, None
    if with_teacher:
        teacher = RoFormer(dataclasses.replace(config.model, time_mixer="full", num_sinks=0, remat="none"))
        teacher_params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_params(teacher),
            param_shardings(teacher, mesh),
        )
    step = build_train_step(config, mesh, teacher)
    start = time.perf_counter()
    try:
        memory = (
            jax.jit(
                step,
                out_shardings=(state_shardings(config, mesh), replicated(mesh)),
                donate_argnums=0,
            )
            .lower(state, batch, teacher_params)
            .compile()
            .memory_analysis()
        )
    except jax.errors.JaxRuntimeError as error:
        return {**row, "temporary GiB": "-", "peak GiB": str(error).splitlines()[0][:100], "compile s": "-"}
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    not_donated = memory.output_size_in_bytes - memory.alias_size_in_bytes
    row |= {"temporary GiB": temporary / GIB, "peak GiB": (arguments + temporary + not_donated) / GIB}
    return {**row, "compile s": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/finetune_wsa.py")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each example")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="numbers of rows, from 0")
    parser.add_argument("--teacher", action="store_true", help="with a teacher")
    args = parser.parse_args()
    rows = []
    for topology, data, fsdp in (CASES[number] for number in args.cases):
        rows.append(compiled(settings(args.config, args.seconds, data, fsdp), topology, with_teacher=args.teacher))
        print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    write_result("tpu_compile_teacher" if args.teacher else "tpu_compile", f"python {' '.join(sys.argv)}", rows)


if __name__ == "__main__":
    main()
