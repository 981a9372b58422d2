"""Windowed sink attention of frames as a TPU kernel.

Tokens go in blocks of 64 queries. A block's keys are the sinks, its own tokens, and a halo on each side:

    keys of a block   [ sinks | halo | 64 | halo ]

A long row is cut into tiles, one a grid step, each of which gets the halos of k and v from its neighbours. In the
backward pass a block adds to the gradients of keys in the halos, which other blocks also add to. What is still open
after a block is carried to the next one, also from tile to tile. So the gradients of keys are written with a delay of
one halo, and those of a tile are complete one grid step after it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from wroformer_jax.model.kernels.blocks import attend, attend_backward, over_blocks
from wroformer_jax.model.kernels.sizes import LANES, Heads, compiler_params, fits_lanes
from wroformer_jax.model.kernels.windows import (
    MAX_REACH,
    Windows,
    block_biases,
    fill_biases,
    join_sinks,
    places_of,
    split_sinks,
    tiles_of,
    widen,
    windows_of,
)

# The tiles of a row come one after the other; rows and groups of lanes in any order.
_ORDER = "parallel", "parallel", "arbitrary"


def aligned_tokens(num_tokens: int, head_dim: int) -> int:
    """Returns the least number of tokens, from num_tokens on, that the kernel takes without a padded copy."""
    tile, tiles = tiles_of(num_tokens, Heads(head_dim, False).block)
    return tile * tiles


def serves_windowed(*, num_lanes: int, head_dim: int, reach: int) -> bool:
    """Says whether `windowed_lanes` takes such inputs."""
    return fits_lanes(num_lanes, head_dim) and 0 <= reach <= MAX_REACH


@functools.partial(jax.jit, static_argnames=("reach", "head_dim", "interpret"))
def windowed_lanes(
    q: Float[Array, "row token lane"],
    k: Float[Array, "row token lane"],
    v: Float[Array, "row token lane"],
    k_sinks: Float[Array, "row sink lane"],
    v_sinks: Float[Array, "row sink lane"],
    bounds: Int[Array, " 2"],
    *,
    reach: int,
    head_dim: int,
    interpret: bool = False,
) -> Float[Array, "row token lane"]:
    """Attention of tokens to those within `reach` of them, and to all sinks, in one softmax.

    Token i sees token j if |i - j| <= reach and bounds[0] <= j < bounds[1]. The softmax is float32. Gradients by a
    second kernel, in memory that is linear in tokens.

    Args:
      q: queries, already scaled. Heads lie side by side in the lanes.
      k: keys. Any finite numbers outside the bounds.
      v: values. Any finite numbers outside the bounds.
      k_sinks: keys of the sinks. There may be none.
      v_sinks: values of the sinks.
      bounds: first token that is seen, and the one after the last.
      reach: tokens on each side that a token sees, at most MAX_REACH.
      head_dim: lanes of a head: a divisor of 128 or a multiple of it.
      interpret: run without a TPU, slowly.

    Returns:
      Weighted sums of values, of q's dtype. Those outside the bounds are finite.
    """
    num_tokens = q.shape[1]
    plan = windows_of(q, k_sinks.shape[1], reach, head_dim, interpret)
    bounds = jnp.clip(bounds, 0, num_tokens).astype(jnp.int32)
    q, k, v = (_pad_rows(x, plan.num_tokens) for x in (q, k, v))
    k_sinks, v_sinks = (_pad_rows(x, plan.sinks) for x in (k_sinks, v_sinks))
    out: Array = _attention(plan, q, k, v, k_sinks, v_sinks, bounds)
    return out[:, :num_tokens]


def _pad_rows(x: Float[Array, "row token lane"], size: int) -> Float[Array, "row size lane"]:
    return x if x.shape[1] == size else jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Windows, q: Array, k: Array, v: Array, k_sinks: Array, v_sinks: Array, bounds: Array) -> Array:
    return _forward(plan, q, k, v, k_sinks, v_sinks, bounds)[0]


def _forward(plan: Windows, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    q, k, v, k_sinks, v_sinks, bounds = inputs
    specs, scratch = _specs(plan), _scratch(plan, q.dtype)
    blocks = [specs.tile, *specs.keys, *specs.keys, specs.sinks, specs.sinks]
    out = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=specs.grid,
        in_specs=[specs.bounds, *blocks],
        out_specs=specs.tile,
        scratch_shapes=scratch,
        compiler_params=compiler_params(_ORDER, [*blocks, specs.tile], scratch, q.dtype, plan.scores),
        interpret=plan.interpret,
    )(bounds, q, *[k] * len(specs.keys), *[v] * len(specs.keys), k_sinks, v_sinks)
    return out, inputs


def _backward(plan: Windows, inputs: tuple[Array, ...], out_gradient: Array) -> tuple[Array | None, ...]:
    q, k, v, k_sinks, v_sinks, bounds = inputs
    specs = _specs(plan, delay=int(plan.tiles > 1))
    blocks = [specs.tile, *specs.keys, *specs.keys, specs.sinks, specs.sinks, specs.tile]
    out_blocks = [specs.tile, specs.delayed, specs.delayed, specs.sinks, specs.sinks]
    scratch = [
        *_scratch(plan, q.dtype),
        *[pltpu.VMEM((plan.tile, plan.lanes), q.dtype)] * 2,
        *[pltpu.VMEM((2 * plan.halo, plan.lanes), jnp.float32)] * 2,
    ]
    sums = jax.ShapeDtypeStruct(k_sinks.shape, jnp.float32)
    dq, dk, dv, dk_sinks, dv_sinks = pl.pallas_call(
        functools.partial(_backward_kernel, plan),
        out_shape=[*[jax.ShapeDtypeStruct(q.shape, q.dtype)] * 3, sums, sums],
        grid=specs.grid,
        in_specs=[specs.bounds, *blocks],
        out_specs=out_blocks,
        scratch_shapes=scratch,
        compiler_params=compiler_params(_ORDER, [*blocks, *out_blocks], scratch, q.dtype, plan.scores),
        interpret=plan.interpret,
    )(bounds, q, *[k] * len(specs.keys), *[v] * len(specs.keys), k_sinks, v_sinks, out_gradient)
    return dq, dk, dv, dk_sinks.astype(q.dtype), dv_sinks.astype(q.dtype), None


_attention.defvjp(_forward, _backward)


class _Specs(NamedTuple):
    """Which part of each array a grid step sees."""

    grid: tuple[int, ...]
    bounds: pl.BlockSpec
    tile: pl.BlockSpec
    delayed: pl.BlockSpec  # the tile of the step before
    keys: list[pl.BlockSpec]  # a tile and, if there are several, the halos before and after it
    sinks: pl.BlockSpec


def _specs(plan: Windows, delay: int = 0) -> _Specs:
    last, halos = plan.tiles - 1, plan.tile // plan.halo
    tile, halo = (plan.rows, plan.tile, plan.lanes), (plan.rows, plan.halo, plan.lanes)
    this = pl.BlockSpec(tile, lambda row, lane, step: (row, jnp.minimum(step, last), lane))
    before = pl.BlockSpec(
        halo, lambda row, lane, step: (row, jnp.maximum(jnp.minimum(step, last) * halos - 1, 0), lane)
    )
    after = pl.BlockSpec(halo, lambda row, lane, step: (row, jnp.minimum((step + 1) * halos, last * halos), lane))
    return _Specs(
        grid=(-(-plan.num_rows // plan.rows), plan.num_lanes // plan.lanes, plan.tiles + delay),
        bounds=pl.BlockSpec(memory_space=pltpu.SMEM),
        tile=this,
        delayed=pl.BlockSpec(tile, lambda row, lane, step: (row, jnp.maximum(step - delay, 0), lane)),
        keys=[this] if last == 0 else [this, before, after],
        sinks=pl.BlockSpec((plan.rows, plan.sinks, plan.lanes), lambda row, lane, step: (row, 0, lane)),
    )


def _scratch(plan: Windows, dtype: jnp.dtype) -> list:
    """Returns keys and values of a tile with halos, and what is added to scores: by distance, and by bounds."""
    wide = plan.tile + 2 * plan.halo
    keys = pltpu.VMEM((wide, plan.lanes), dtype)
    return [keys, keys, pltpu.VMEM((plan.seen, LANES), jnp.float32), pltpu.VMEM((wide, LANES), jnp.float32)]


def _forward_kernel(plan: Windows, *refs) -> None:
    bounds_ref, q_ref, *key_refs, k_sinks_ref, v_sinks_ref, out_ref, k_wide, v_wide, near_ref, bounded_ref = refs
    half = len(key_refs) // 2
    fill_biases(plan, bounds_ref, near_ref, bounded_ref)

    def over_rows(row, _):
        widen(plan, row, key_refs[:half], k_wide)
        widen(plan, row, key_refs[half:], v_wide)

        def attend_blocks(numbers):
            places = places_of(plan, numbers)
            k = [
                join_sinks(plan, k_sinks_ref[row, :, place.lanes], k_wide[place.wide, place.lanes]) for place in places
            ]
            v = [
                join_sinks(plan, v_sinks_ref[row, :, place.lanes], v_wide[place.wide, place.lanes]) for place in places
            ]
            q = [q_ref[row, place.block, place.lanes] for place in places]
            bias = block_biases(plan, near_ref, bounded_ref, places)
            for place, out in zip(places, attend(q, k, v, bias, plan.heads), strict=True):
                out_ref[row, place.block, place.lanes] = out.astype(out_ref.dtype)

        over_blocks(plan.blocks, plan.heads.blocks_at_once, attend_blocks)

    jax.lax.fori_loop(0, plan.rows, over_rows, None)


def _backward_kernel(plan: Windows, *refs) -> None:
    inputs, outputs, scratch = refs[:-13], refs[-13:-8], refs[-8:]
    bounds_ref, q_ref, *key_refs, k_sinks_ref, v_sinks_ref, out_gradient_ref = inputs
    dq_ref, dk_ref, dv_ref, dk_sinks_ref, dv_sinks_ref = outputs
    k_wide, v_wide, near_ref, bounded_ref, dk_done, dv_done, dk_open, dv_open = scratch
    half, block, halo, step = len(key_refs) // 2, plan.heads.block, plan.halo, pl.program_id(2)

    @pl.when(step == 0)
    def _():
        for ref in (dk_sinks_ref, dv_sinks_ref, dk_open, dv_open):
            ref[...] = jnp.zeros_like(ref)

    fill_biases(plan, bounds_ref, near_ref, bounded_ref)

    def pull_blocks(row, numbers):
        places = places_of(plan, numbers)
        k = [join_sinks(plan, k_sinks_ref[row, :, place.lanes], k_wide[place.wide, place.lanes]) for place in places]
        v = [join_sinks(plan, v_sinks_ref[row, :, place.lanes], v_wide[place.wide, place.lanes]) for place in places]
        q, out_gradient = (
            [ref[row, place.block, place.lanes] for place in places] for ref in (q_ref, out_gradient_ref)
        )
        bias = block_biases(plan, near_ref, bounded_ref, places)
        for place, (dq, dk, dv) in zip(places, attend_backward(q, k, v, bias, out_gradient, plan.heads), strict=True):
            here, lanes = place.block, place.lanes
            dq_ref[row, here, lanes] = dq.astype(dq_ref.dtype)
            for gradient, sinks_ref, open_ref, done_ref in (
                (dk, dk_sinks_ref, dk_open, dk_done),
                (dv, dv_sinks_ref, dv_open, dv_done),
            ):
                of_sinks, of_tokens = split_sinks(plan, gradient)
                sinks_ref[row, :, lanes] += of_sinks
                done = of_tokens[: 2 * halo] + open_ref[:, lanes]
                if 2 * halo < block:
                    done = jnp.concatenate([done, of_tokens[2 * halo : block]])
                done_ref[here, lanes] = done.astype(done_ref.dtype)
                open_ref[:, lanes] = of_tokens[block:]

    def over_rows(row, _):
        pairs = (dk_ref, dk_done, dk_open), (dv_ref, dv_done, dv_open)
        if plan.tiles > 1:
            for ref, done, _ in pairs:
                ref[row, : plan.tile - halo] = done[halo:]

        @pl.when(step < plan.tiles)
        def _():
            widen(plan, row, key_refs[:half], k_wide)
            widen(plan, row, key_refs[half:], v_wide)
            over_blocks(plan.blocks, plan.heads.blocks_at_once, functools.partial(pull_blocks, row))

        for ref, done, still_open in pairs:
            if plan.tiles == 1:
                ref[row, : plan.tile - halo] = done[halo:]
                ref[row, plan.tile - halo :] = still_open[:halo].astype(ref.dtype)
                still_open[...] = jnp.zeros_like(still_open)
            else:
                complete = jnp.where(step < plan.tiles, done[:halo].astype(jnp.float32), still_open[:halo])
                ref[row, plan.tile - halo :] = complete.astype(ref.dtype)

    jax.lax.fori_loop(0, plan.rows, over_rows, None)
