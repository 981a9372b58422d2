"""Compiles a product, a loop of products and a Pallas kernel for a v5e, and prints the times of its operations as JSON.

A program of its own, since libtpu reads its options when it is loaded: python tpu_program.py FOLDER
"""

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import SingleDeviceSharding

from wroformer_jax.parallel.hardware import known_hardware
from wroformer_jax.planning.bundles import DUMP_FLAGS, Dumps
from wroformer_jax.planning.topology import find_topology
from wroformer_jax.planning.tpu_time import operations, speed_of

GRID, ROWS, TURNS = 8, 8, 16  # of the kernel: windows, rows at a time, times


def kernel(x, out):
    """tanh, a few rows at a time."""

    def some_rows(number, _):
        rows = pl.ds(number * ROWS, ROWS)
        out[rows, :] = jnp.tanh(x[rows, :])

    jax.lax.fori_loop(0, TURNS, some_rows, None)


def program(a, b, c, d, x):
    """Parts by the names that the model gives its own."""
    with jax.named_scope("time_feed_forward"):
        product = a @ b
    with jax.named_scope("time_attention"):
        looped, _ = jax.lax.scan(lambda y, _: ((y @ d).astype(y.dtype), None), c, None, length=5)
    with jax.named_scope("freq_attention"):
        block = pl.BlockSpec((ROWS * TURNS, x.shape[1]), lambda i: (i, 0))
        kernelled = pl.pallas_call(
            kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), grid=(GRID,), in_specs=[block], out_specs=block
        )(x)
    return product, looped, kernelled


def main():
    folder = Path(sys.argv[1])
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(DUMP_FLAGS).format(folder=folder)
    device = find_topology("v5e:1x1").devices[0]
    placed = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
    square = placed((4096, 4096), jnp.bfloat16)
    rows, values = placed((512, 4096), jnp.bfloat16), placed((GRID * ROWS * TURNS, 512), jnp.float32)
    arguments = (square, square, rows, square, values)
    text = jax.jit(program).lower(*arguments).compile().as_text()
    speed = speed_of("TPU v5e", known_hardware("TPU v5e"))
    found = operations(text, Dumps(folder).of, speed)
    print(
        json.dumps(
            [{**dataclasses.asdict(one), "estimated": one.estimated, "scheduled": one.scheduled} for one in found]
        )
    )


if __name__ == "__main__":
    main()
