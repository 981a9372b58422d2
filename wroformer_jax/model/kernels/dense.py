"""Attention of every token of a row to every other one as a TPU kernel.

It is for many short rows, such as the bands of each frame, and for rows of up to MAX_TOKENS, such as the frames of a
band under full attention. A grid step has whole rows, several of them if they are short, and goes over their queries in
blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from wroformer_jax.model.kernels.blocks import HIDDEN, attend, attend_backward, clear_rows, over_blocks
from wroformer_jax.model.kernels.sizes import (
    LANES,
    MAX_LANE_BYTES,
    ROW_MULTIPLE,
    Heads,
    compiler_params,
    fits_lanes,
    lanes_at_once,
    round_up,
)

MAX_TOKENS = 2048  # of a row: its keys, and the scores of one block of queries with all of them, lie in VMEM
TOKENS_AT_ONCE = 1024  # of all rows in a grid step, if rows are short

_ORDER = "parallel", "parallel"  # rows and groups of lanes come in any order


class _Plan(NamedTuple):
    """Sizes of a kernel."""

    heads: Heads
    num_rows: int
    num_tokens: int
    num_lanes: int
    rows: int  # rows of a grid step
    lanes: int  # lanes of a grid step
    all_keys: bool  # True if every token is a key
    interpret: bool

    @property
    def queries(self) -> int:
        """Tokens of a row, filled up to whole blocks of queries."""
        return round_up(self.num_tokens, self.heads.block)

    @property
    def blocks(self) -> int:
        """Blocks of queries in a row."""
        return self.queries // self.heads.block

    @property
    def keys(self) -> int:
        """Tokens of a row, filled up to whole registers."""
        return round_up(self.num_tokens, ROW_MULTIPLE)

    @property
    def scores(self) -> int:
        """Scores that are worked on at once."""
        return self.heads.blocks_at_once * self.keys * self.lanes


def serves_dense(*, num_tokens: int, num_lanes: int, head_dim: int) -> bool:
    """Says whether `dense_lanes` takes such inputs."""
    return fits_lanes(num_lanes, head_dim) and num_tokens <= MAX_TOKENS


@functools.partial(jax.jit, static_argnames=("head_dim", "interpret"))
def dense_lanes(
    q: Float[Array, "row token lane"],
    k: Float[Array, "row token lane"],
    v: Float[Array, "row token lane"],
    *,
    head_dim: int,
    num_keys: int | Int[Array, ""] | None = None,
    interpret: bool = False,
) -> Float[Array, "row token lane"]:
    """Attention of every token of a row to the first num_keys tokens of that row, with a float32 softmax.

    Args:
      q: queries, already scaled. Heads lie side by side in the lanes.
      k: keys. Any finite numbers from num_keys on.
      v: values. Any finite numbers from num_keys on.
      head_dim: lanes of a head: a divisor of 128 or a multiple of it.
      num_keys: number of first keys that count; the rest is padding. All keys by default.
      interpret: run without a TPU, slowly.

    Returns:
      Weighted sums of values, of q's dtype.
    """
    num_rows, num_tokens, num_lanes = q.shape
    heads = Heads(head_dim, interpret)
    rows = min(num_rows, max(1, TOKENS_AT_ONCE // round_up(num_tokens, heads.block)))
    plan = _Plan(
        heads=heads,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_lanes=num_lanes,
        rows=rows,
        lanes=lanes_at_once(num_lanes, heads, MAX_LANE_BYTES // q.dtype.itemsize if num_tokens <= 512 else LANES),
        all_keys=num_keys is None,
        interpret=interpret,
    )
    count = jnp.asarray(num_tokens if num_keys is None else num_keys, jnp.int32).reshape(1)
    return _attention(plan, q, k, v, jnp.clip(count, 0, num_tokens))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: _Plan, q: Array, k: Array, v: Array, num_keys: Array) -> Array:
    return _forward(plan, q, k, v, num_keys)[0]


def _forward(plan: _Plan, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    q, k, v, num_keys = inputs
    queries, keys = _specs(plan)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=_grid(plan),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), queries, keys, keys],
        out_specs=queries,
        compiler_params=compiler_params(_ORDER, [queries] * 2 + [keys] * 2, [], q.dtype, plan.scores),
        interpret=plan.interpret,
    )(num_keys, q, k, v)
    return out, inputs


def _backward(plan: _Plan, inputs: tuple[Array, ...], out_gradient: Array) -> tuple[Array | None, ...]:
    q, k, v, num_keys = inputs
    queries, keys = _specs(plan)
    scratch = [] if plan.blocks == 1 else [pltpu.VMEM((plan.keys, plan.lanes), jnp.float32)] * 2
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, plan),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype)] * 3,
        grid=_grid(plan),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), queries, keys, keys, queries],
        out_specs=[queries, keys, keys],
        scratch_shapes=scratch,
        compiler_params=compiler_params(_ORDER, [queries] * 3 + [keys] * 4, scratch, q.dtype, plan.scores),
        interpret=plan.interpret,
    )(num_keys, q, k, v, out_gradient)
    return *gradients, None


_attention.defvjp(_forward, _backward)


def _grid(plan: _Plan) -> tuple[int, int]:
    return -(-plan.num_rows // plan.rows), plan.num_lanes // plan.lanes


def _specs(plan: _Plan) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Which part of the queries, and of the keys, a grid step sees. Rows beyond the array's hold anything."""
    queries = pl.BlockSpec((plan.rows, plan.queries, plan.lanes), lambda row, lane: (row, 0, lane))
    return queries, pl.BlockSpec((plan.rows, plan.keys, plan.lanes), lambda row, lane: (row, 0, lane))


def _forward_kernel(plan: _Plan, num_keys_ref, q_ref, k_ref, v_ref, out_ref) -> None:
    bias = _bias(plan, num_keys_ref)

    def over_rows(rows):
        parts = _parts(plan, rows)
        k, v = ([clear_rows(ref[row, :, lanes], plan.num_tokens) for row, lanes in parts] for ref in (k_ref, v_ref))

        def attend_blocks(numbers):
            places, times = _places(plan, parts, numbers), len(numbers)
            q = [_queries(plan, q_ref, place) for place in places]
            outs = attend(q, k * times, v * times, [bias] * len(places), plan.heads)
            for place, out in zip(places, outs, strict=True):
                out_ref[place.row, place.block, place.lanes] = out.astype(out_ref.dtype)

        over_blocks(plan.blocks, plan.heads.blocks_at_once, attend_blocks)

    _loop_over_rows(plan, over_rows)


def _backward_kernel(plan: _Plan, num_keys_ref, q_ref, k_ref, v_ref, out_gradient_ref, *outputs) -> None:
    dq_ref, dk_ref, dv_ref, *sums = outputs
    bias = _bias(plan, num_keys_ref)

    def over_rows(rows):
        parts = _parts(plan, rows)
        k, v = ([clear_rows(ref[row, :, lanes], plan.num_tokens) for row, lanes in parts] for ref in (k_ref, v_ref))
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

        def pull_blocks(numbers):
            places, times = _places(plan, parts, numbers), len(numbers)
            q, out_gradient = ([_queries(plan, ref, place) for place in places] for ref in (q_ref, out_gradient_ref))
            biases = [bias] * len(places)
            gradients = attend_backward(q, k * times, v * times, biases, out_gradient, plan.heads)
            for (row, lanes, _, block), (dq, dk, dv) in zip(places, gradients, strict=True):
                dq_ref[row, block, lanes] = dq.astype(dq_ref.dtype)
                if sums:
                    sums[0][:, lanes] += dk
                    sums[1][:, lanes] += dv
                else:
                    dk_ref[row, :, lanes], dv_ref[row, :, lanes] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)

        over_blocks(plan.blocks, plan.heads.blocks_at_once, pull_blocks)
        if sums:
            dk_ref[rows[0]], dv_ref[rows[0]] = (ref[...].astype(dk_ref.dtype) for ref in sums)

    _loop_over_rows(plan, over_rows)


def _loop_over_rows(plan: _Plan, work: Callable[[list], None]) -> None:
    """Calls work(rows) for all rows of a grid step. Rows of one block are worked on as blocks are."""
    if plan.blocks == 1:
        over_blocks(plan.rows, plan.heads.blocks_at_once, work)
    else:
        jax.lax.fori_loop(0, plan.rows, lambda row, _: work([row]), None)


class _Place(NamedTuple):
    """One block of queries of one row, and one group of heads."""

    row: Array | int
    lanes: slice
    start: Array | int  # the block's first token
    block: Any  # the block's tokens


def _parts(plan: _Plan, rows: list) -> list[tuple[Array | int, slice]]:
    """Returns rows with the lanes of each group of heads in them."""
    group = plan.heads.group
    return [(row, slice(first, first + group)) for row in rows for first in range(0, plan.lanes, group)]


def _places(plan: _Plan, parts: list[tuple[Array | int, slice]], numbers: list) -> list[_Place]:
    """Returns the places of blocks, block by block."""
    size = plan.heads.block
    starts = [n * size if isinstance(n, int) else pl.multiple_of(n * size, size) for n in numbers]
    return [_Place(row, lanes, start, pl.ds(start, size)) for start in starts for row, lanes in parts]


def _queries(plan: _Plan, ref, place: _Place) -> Array:
    """Returns one block of queries (or of their gradients), with zeros after the last token."""
    return clear_rows(ref[place.row, place.block, place.lanes], plan.num_tokens - place.start)


def _bias(plan: _Plan, num_keys_ref) -> Float[Array, "key columns"] | None:
    """Returns 0 for keys that count, and HIDDEN for the others."""
    if plan.all_keys and plan.keys == plan.num_tokens:
        return None
    key = jax.lax.broadcasted_iota(jnp.int32, (plan.keys, LANES), 0)
    return jnp.where(key < (plan.num_tokens if plan.all_keys else num_keys_ref[0]), 0.0, HIDDEN)
