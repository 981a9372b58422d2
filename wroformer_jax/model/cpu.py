"""Windowed attention as CPUs want it: a few bands at a time, in short blocks.

The numbers are computed by the scan form (attention.py). It gets a few rows (bands) of the batch at a time, whose
queries, keys, values and scores then stay in the caches between one operation and the next. Blocks of 16 queries make
fewer scores that the window hides than those of 64 that suit other devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from wroformer_jax.model import attention
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

QUERY_BLOCK = 16  # frames
TOKENS_AT_ONCE = 2048  # rows x tokens: 4 MB of queries at the published size


def windowed_sink_attention(
    q: Float[Array, "batch token head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    *,
    window: int,
    num_sinks: int,
    num_hops: int | None = None,
    time: TimeAxis = WHOLE,
) -> Float[Array, "batch token head head_dim"]:
    """As `attention.windowed_sink_attention`, which it is on all devices but CPUs, and where time is cut."""
    plain = functools.partial(
        attention.windowed_sink_attention, window=window, num_sinks=num_sinks, num_hops=num_hops, time=time
    )
    if not time.is_whole:
        return plain(q, k, v)
    in_groups = functools.partial(_in_groups, functools.partial(plain, query_block=QUERY_BLOCK))
    # The choice is made when the program is lowered, since it may be compiled for another kind of device.
    return jax.lax.platform_dependent(q, k, v, cpu=in_groups, default=plain)


def rows_at_once(rows: int, tokens: int) -> int:
    """Returns the greatest divisor of `rows` whose rows have at most TOKENS_AT_ONCE tokens together; at least 1."""
    return max(
        size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * tokens <= TOKENS_AT_ONCE)
    )


def _in_groups(attend: Callable[[Array, Array, Array], Array], *qkv: Array) -> Array:
    rows, tokens = qkv[0].shape[:2]
    size = rows_at_once(rows, tokens)
    if size == rows:
        return attend(*qkv)
    groups = tuple(x.reshape(-1, size, *x.shape[1:]) for x in qkv)
    return jax.lax.map(lambda group: attend(*group), groups).reshape(qkv[0].shape)
