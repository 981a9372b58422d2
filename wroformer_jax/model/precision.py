"""Matrix products with float32 results, whatever the inputs' dtype and the device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array


def product(equation: str, x: Array, y: Array) -> Array:
    """`jnp.einsum(equation, x, y)` with a float32 result.

    float32 inputs are multiplied as float32, also by devices that round matrix inputs by default. bfloat16 inputs
    are multiplied as such and added up in float32.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)
    native = functools.partial(jnp.einsum, equation, preferred_element_type=jnp.float32)

    def widened(x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x.astype(jnp.float32), y.astype(jnp.float32))

    # XLA for CPUs has no product of bfloat16 with a float32 result. Chosen when lowered, not by the default device:
    # a program may be compiled for another kind of device than is present.
    return jax.lax.platform_dependent(x, y, cpu=widened, default=native)
