"""Sizes of kernels: how heads lie in the lanes, and how much of an array a grid step works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # numbers in a row of a register
ROW_MULTIPLE = 16  # rows of bfloat16 in a register
MAX_LANE_BYTES = 1024  # of a token: the most that a grid step works on

# Float32 copies of the scores that a kernel keeps: more than compilers were seen to take for v5e, v5p and v6e (6, and
# 48 where exact float32 products split each of their inputs into three).
_COPIES = {jnp.dtype(jnp.bfloat16): 10, jnp.dtype(jnp.float32): 64}
_SPARE_VMEM = 2**20  # bytes


class Heads(NamedTuple):
    """How heads lie in the lanes."""

    head_dim: int
    widen: bool  # True if products of bfloat16 are to be computed as float32, since XLA for CPUs has no others

    @property
    def group(self) -> int:
        """Lanes that are worked on together: those of one head, or of all heads that share 128 lanes."""
        return max(self.head_dim, LANES)

    @property
    def at_once(self) -> int:
        """Heads whose scores lie side by side."""
        return 1 if self.head_dim >= LANES else 2

    @property
    def block(self) -> int:
        """Queries in a block: the scores of a key fill 128 lanes."""
        return LANES // self.at_once

    @property
    def blocks_at_once(self) -> int:
        """Blocks of queries that are worked on together. Several rounds are work enough."""
        return 2 if len(self.rounds) == 1 else 1

    @property
    def rounds(self) -> range:
        """The first head of each round over a group."""
        return range(0, self.group // self.head_dim, self.at_once)


def fits_lanes(num_lanes: int, head_dim: int) -> bool:
    """Says whether heads of that size fill groups of lanes."""
    divides = head_dim % 8 == 0 and (LANES % head_dim == 0 or head_dim % LANES == 0)
    return divides and num_lanes % max(LANES, head_dim) == 0


def lanes_at_once(num_lanes: int, heads: Heads, most: int) -> int:
    """Returns the lanes of whole groups that a grid step works on: at most `most` of them, but one group at least."""
    groups = num_lanes // heads.group
    return heads.group * max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * heads.group <= most))


def round_up(number: int, multiple: int) -> int:
    """Returns the least multiple that is not below the number."""
    return -(-number // multiple) * multiple


def compiler_params(
    semantics: Sequence[Literal["parallel", "arbitrary"]],
    blocks: Sequence[Any],
    scratch: Sequence[Any],
    dtype: jnp.dtype,
    scores: int,
) -> pltpu.CompilerParams:
    """Returns what the compiler has to know of a kernel.

    The kernel gets the VMEM that it needs and little more, since what others keep in VMEM has to lie beside it.

    Args:
      semantics: of each axis of the grid, whether the order of its steps matters.
      blocks: the parts of inputs and outputs in VMEM. There are two of each: one is worked on while one is moved.
      scratch: memory of the kernel's own.
      dtype: of the inputs and outputs.
      scores: number of scores that are worked on at once.
    """
    moved = sum(2 * math.prod(block.block_shape) * dtype.itemsize for block in blocks)
    kept = sum(math.prod(memory.shape) * jnp.dtype(memory.dtype).itemsize for memory in scratch)
    limit = moved + kept + 4 * _COPIES[dtype] * scores + _SPARE_VMEM
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit)
