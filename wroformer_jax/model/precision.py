"""Matrix products with float32 results, whatever the dtype of the inputs and the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def product(equation: str, x: Array, y: Array) -> Array:
    """Returns `jnp.einsum(equation, x, y)` as float32.

    Inputs of float32 are multiplied in float32, also on devices that round matrix inputs by default. Products of
    bfloat16 inputs are added up in float32. Gradients go backwards only: float32 products refuse `jax.jvp`.
    """
    if x.dtype == jnp.float32:
        return _exact(equation, x, y)
    native = functools.partial(jnp.einsum, equation, preferred_element_type=jnp.float32)

    def widened(x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x.astype(jnp.float32), y.astype(jnp.float32))

    # XLA for CPUs has no product of bfloat16 with a float32 result. The choice is made when the program is lowered,
    # since it may be compiled for another kind of device than the default one.
    return jax.lax.platform_dependent(x, y, cpu=widened, default=native)


# JAX takes the gradient of a product as the transposed product, and transposes the result. On CPUs that moves all
# weights of the mask estimator, which takes longer than the product. Written as products of their own, both gradients
# come out as they are needed.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _exact(equation: str, x: Array, y: Array) -> Array:
    return _einsum(equation, x, y)


def _einsum(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)


def _exact_forward(equation: str, x: Array, y: Array) -> tuple[Any, tuple[Array, Array]]:
    # Not by `_exact`, in which remat "dots" would not find the product that it is to keep.
    return _einsum(equation, x, y), (x, y)


def _exact_backward(equation: str, kept: tuple[Array, Array], cotangent: Array) -> tuple[Any, Any]:
    x, y = kept
    inputs, output = equation.split("->")
    axes_x, axes_y = inputs.split(",")
    of_x = _exact(f"{output},{axes_y}->{axes_x}", cotangent, y)
    to_y = functools.partial(_exact, f"{axes_x},{output}->{axes_y}")
    if "..." not in axes_x or "..." in axes_y:
        return of_x, to_y(x, cotangent)
    over_rows = functools.partial(_over_rows, to_y)
    return of_x, jax.lax.platform_dependent(x, cotangent, cpu=over_rows, default=to_y)


def _over_rows(to_y: Callable[[Array, Array], Array], x: Array, cotangent: Array) -> Array:
    """Adds up over one axis: XLA for CPUs would transpose what it has to add up over several."""
    return to_y(x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1]))


_exact.defvjp(_exact_forward, _exact_backward)
