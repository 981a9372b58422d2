"""Compiles small functions for four virtual devices and prints their collectives as JSON; test_hlo.py runs it."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

jax.config.update("jax_num_cpu_devices", 4)

from wroformer_jax.planning.hlo import collectives

RING = [(i, (i + 1) % 4) for i in range(4)]
SHAPE = (8, 16)  # float32: 128 bytes per device


def passed_on(x):
    return jax.lax.ppermute(x, "x", RING)


def summed(x):
    return jax.lax.psum(x, "x")


def nested(x):
    """Passes to the neighbour 7 x 3 times and sums 7 times."""

    def body(carry, _):
        carry = jax.lax.fori_loop(0, 3, lambda _, c: passed_on(1.1 * c), carry)
        return summed(jnp.sin(carry)), None

    return jax.lax.scan(body, x, None, length=7)[0]


def until(x):
    return jax.lax.while_loop(lambda c: c.sum() < 1.0, lambda c: passed_on(c + 1.0), x)


def branches(x):
    return jax.lax.cond(x[0, 0] > 0.0, lambda y: summed(summed(y) * y), passed_on, x)


def counted_from_two(x):
    return jax.lax.fori_loop(2, 7, lambda i, c: passed_on(c * i), x)


FUNCTIONS = {
    "all-reduce": summed,
    "collective-permute": passed_on,
    "all-gather": lambda x: jax.lax.all_gather(x, "x"),
    "reduce-scatter": lambda x: jax.lax.psum_scatter(jnp.tile(x, (2, 1)), "x"),
    "all-to-all": lambda x: jax.lax.all_to_all(x, "x", 1, 1, tiled=True),
    "nothing": jnp.sin,
    "nested": nested,
    "until": until,
    "branches": branches,
    "counted_from_two": counted_from_two,
    "pairs": lambda x: jax.lax.psum(x, "x", axis_index_groups=[[0, 1], [2, 3]]),
}


def main() -> None:
    mesh, spec = Mesh(np.asarray(jax.devices()), ("x",)), PartitionSpec("x")
    found = {}
    for name, function in FUNCTIONS.items():
        spread = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        compiled = jax.jit(spread).lower(jax.ShapeDtypeStruct(SHAPE, jnp.float32)).compile()
        found[name] = [
            [one.kind, one.size, one.group, one.executions, one.is_exact, one.source, one.sent]
            for one in collectives(compiled.as_text())
        ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
