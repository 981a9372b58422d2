"""Rotary position embedding (arXiv 2104.09864) on interleaved pairs, as the public PyTorch checkpoints use it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

THETA = 10_000.0


def rotary_frequencies(dim_head: int) -> Float[np.ndarray, " pair"]:
    """Returns radians per position for each pair of head dimensions: theta ** (-2 i / dim_head), float32."""
    exponents = np.arange(0, dim_head, 2, dtype=np.float32) / np.float32(dim_head)
    # The power is rounded to float32 before its reciprocal is taken, as in PyTorch's checkpoints.
    return np.float32(1.0) / (THETA ** exponents.astype(np.float64)).astype(np.float32)


def rotary_tables(
    freqs: Float[Array, " pair"], positions: Int[Array, " token"]
) -> tuple[Float[Array, "token 1 head_dim"], Float[Array, "token 1 head_dim"]]:
    """Returns the cosines and sines of the angles, float32. Each comes twice in a row, once per element of a pair.

    Args:
      freqs: radians per position of each pair.
      positions: positions of the tokens.
    """
    angles = jnp.repeat(positions.astype(jnp.float32)[:, None] * freqs, 2, axis=-1)[:, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "*batch token head head_dim"],
    cos: Float[Array, "token 1 head_dim"],
    sin: Float[Array, "token 1 head_dim"],
) -> Float[Array, "*batch token head head_dim"]:
    """Rotates each pair (x[2i], x[2i + 1]) by its position's angle; computed in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    even = jnp.arange(x.shape[-1]) % 2 == 0
    # Rolls along the lanes instead of a reshape to pairs, which would leave a last axis of length 2.
    turned = jnp.where(even, -jnp.roll(x32, -1, axis=-1), jnp.roll(x32, 1, axis=-1))
    return (x32 * cos + turned * sin).astype(x.dtype)
