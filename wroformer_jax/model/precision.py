"""Matrix products with float32 results, whatever the dtype of the inputs and the device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array


def product(equation: str, x: Array, y: Array) -> Array:
    """Returns `jnp.einsum(equation, x, y)` as float32.

    Inputs of float32 are multiplied in float32, also on devices that round matrix inputs by default. Products of
    bfloat16 inputs are added up in float32.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)
    native = functools.partial(jnp.einsum, equation, preferred_element_type=jnp.float32)

    def widened(x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x.astype(jnp.float32), y.astype(jnp.float32))

    # XLA for CPUs has no product of bfloat16 with a float32 result. The choice is made when the program is lowered,
    # since it may be compiled for another kind of device than the default one.
    return jax.lax.platform_dependent(x, y, cpu=widened, default=native)
