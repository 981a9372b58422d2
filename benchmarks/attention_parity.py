"""Compares windowed sink attention with a dense masked softmax: values and gradients over a grid of sizes.

    python benchmarks/attention_parity.py

tests/model/test_attention.py has a short form of it. An error is the largest absolute difference, divided by
max(1, largest value of the reference tensor). The bound is 1e-5.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from report import print_table, write_result
from tqdm import tqdm

from wroformer_jax.model.attention import windowed_sink_attention

LENGTHS = [1, 2, 9, 65, 73, 200, 577, 1000]
WINDOWS = [0, 1, 7, 10, 64]
SINKS = [0, 1, 8]
BOUND = 1e-5


def dense(q, k, v, *, window, num_sinks):
    """Returns windowed sink attention, computed with a dense mask."""
    i, j = np.arange(q.shape[1])[:, None], np.arange(q.shape[1])
    visible = (i < num_sinks) | (j < num_sinks) | (abs(i - j) <= window // 2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")


def errors(length: int, window: int, num_sinks: int) -> tuple[float, float]:
    """Returns the errors of the value and of the gradients for sequences of `length` tokens."""
    rng = np.random.default_rng(length)
    arrays = tuple(rng.standard_normal((2, length, 2, 16), np.float32) for _ in range(4))

    @functools.partial(jax.jit, static_argnums=0)
    def run(attend, q, k, v, weights):
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, window=window, num_sinks=num_sinks), q, k, v)
        return out, pull(weights)

    ours, reference = (run(attend, *arrays) for attend in (windowed_sink_attention, dense))

    def error(a, b):
        return float(abs(a - b).max() / jnp.maximum(1.0, abs(b).max()))

    return error(ours[0], reference[0]), max(map(error, ours[1], reference[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = []
    for window, sinks in tqdm(list(itertools.product(WINDOWS, SINKS)), desc="window, sinks"):
        found = [errors(length, window, sinks) for length in LENGTHS]
        value, gradient = (max(column) for column in zip(*found, strict=True))
        rows.append({"window": window, "sinks": sinks, "lengths": len(LENGTHS), "value": value, "gradient": gradient})
    print_table(rows)
    worst = max(max(row["value"], row["gradient"]) for row in rows)
    print(f"largest error {worst:.1e}, bound {BOUND:.0e}: {'within' if worst <= BOUND else 'EXCEEDED'}")
    write_result("attention_parity", "python benchmarks/attention_parity.py", rows)


if __name__ == "__main__":
    main()
