"""Measures the memory of attention, value and gradient, against the number of frames, as the compiler reports it.

    python benchmarks/attention_memory.py

Both attentions must be linear: twice the frames may take at most 2.1 times the bytes.
"""

import argparse

import jax
import jax.numpy as jnp
from report import print_table, write_result

from wroformer_jax.model.attention import full_attention, windowed_sink_attention

ATTENTIONS = {
    "windowed_sink": lambda q, k, v: windowed_sink_attention(q, k, v, window=10, num_sinks=8),
    "full": full_attention,
}


def memory(attend, frames: int) -> dict[str, int]:
    """Returns the memory in MiB for one band of the published size: 8 heads of 64, float32."""
    shape = jax.ShapeDtypeStruct((1, frames, 8, 64), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2)))
    analysis = step.lower(shape, shape, shape).compile().memory_analysis()
    assert analysis is not None  # CPUs report it
    inputs = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return {"inputs and outputs MiB": inputs >> 20, "temporary MiB": analysis.temp_size_in_bytes >> 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8192, 16384, 32768, 65536], help="numbers of frames")
    frames = parser.parse_args().frames
    rows = []
    for name, attend in ATTENTIONS.items():
        previous = None
        for length in frames:
            row = {"attention": name, "frames": length, **memory(attend, length)}
            total = row["inputs and outputs MiB"] + row["temporary MiB"]
            rows.append({**row, "total MiB": total, "to previous": round(total / previous, 3) if previous else ""})
            previous = total
    print_table(rows)
    write_result("attention_memory", "python benchmarks/attention_memory.py", rows)


if __name__ == "__main__":
    main()
