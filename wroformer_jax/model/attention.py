"""Blocked softmax attention: full, and windowed with sinks (WSA, arXiv 2510.25745).

Both scan over blocks of tokens and compute the scores of a block again in the backward pass. So the memory is that of
the inputs and of one round of the scan, forwards and backwards. A round gets its blocks as scanned inputs, not as
slices of the whole sequence: the gradient of a slice would be added to an array of the sequence's length in every
round, which takes quadratic time.

Scores and softmax are float32; outputs have the dtype of the queries. Products of float32 inputs are float32, also on
devices that round matrix inputs by default.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wroformer_jax.errors import InputError
from wroformer_jax.model.precision import product
from wroformer_jax.parallel.time_axis import MAX_REACH, WHOLE, Count, TimeAxis

QUERY_BLOCK = 64  # frames: queries of the windowed attention that share one slice of keys, unless told otherwise
FRAMES_PER_ROUND = 512  # frames: queries in one round of the windowed attention's scan
FULL_BLOCK = 512  # tokens: queries, and keys, in one round of the full attention's scans

# The score of keys that a query may not see. It is finite, so that a row without any visible key stays finite.
HIDDEN = -1e30


def windowed_sink_attention(
    q: Float[Array, "batch token head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    *,
    window: int,
    num_sinks: int,
    num_hops: int | None = None,
    time: TimeAxis = WHOLE,
    query_block: int = QUERY_BLOCK,
) -> Float[Array, "batch token head head_dim"]:
    """Attention within a window around each token, and from and to the sinks, which are the first tokens.

    Query i sees key j if i < num_sinks, or j < num_sinks, or |i - j| <= window // 2. Memory grows linearly with the
    number of tokens for any window. Time grows linearly for a given window.

    Args:
      q: queries, not yet scaled.
      k: keys.
      v: values.
      window: number of tokens around a token that it sees, window // 2 on each side. With 0 it sees only itself.
      num_sinks: number of first tokens that see all tokens and are seen by all. May exceed the number of tokens.
      num_hops: hops of the audio; tokens after the sinks and num_hops + 1 frames are padding. All tokens by default.
      time: the time axis. If it is cut into parts, window // 2 must be at most num_hops and MAX_REACH.
      query_block: frames whose queries share one slice of keys.

    Raises:
      InputError: window or num_sinks is negative.
    """
    if window < 0 or num_sinks < 0:
        raise InputError(f"window is {window} and num_sinks {num_sinks}, expected neither to be negative")
    num_tokens, reach = q.shape[1], window // 2
    num_hops = num_tokens - num_sinks - 1 if num_hops is None else num_hops
    if time.is_whole and (reach >= num_hops or num_sinks >= num_tokens):
        return full_attention(q, k, v, num_keys=min(num_tokens, num_sinks + num_hops + 1))
    q_sinks, k_sinks, v_sinks = q[:, :num_sinks], k[:, :num_sinks], v[:, :num_sinks]
    q_frames, k_frames, v_frames = q[:, num_sinks:], k[:, num_sinks:], v[:, num_sinks:]
    if reach <= MAX_REACH:
        out = _frame_attention(
            q_frames,
            k_frames,
            v_frames,
            k_sinks,
            v_sinks,
            reach=reach,
            num_hops=num_hops,
            time=time,
            query_block=query_block,
        )
    else:
        out = _online_attention(q_frames, k, v, reach=reach, num_sinks=num_sinks, num_keys=num_sinks + num_hops + 1)
    if not num_sinks:
        return out
    if time.is_whole:
        sinks = full_attention(q_sinks, k, v, num_keys=num_sinks + num_hops + 1)
    else:
        num_frames = time.owned_end_frame(num_hops)
        sinks = _sink_attention(q_sinks, k_sinks, v_sinks, k_frames, v_frames, num_frames=num_frames, time=time)
    return jnp.concatenate([sinks, out], axis=1)


def full_attention(
    q: Float[Array, "batch query head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    num_keys: int | None = None,
) -> Float[Array, "batch query head head_dim"]:
    """Attention of every query to every key, in blocks with an online softmax (arXiv 2205.14135).

    Gives what `jax.nn.dot_product_attention(q, k, v)` gives, in quadratic time and linear memory.

    Args:
      q: queries, not yet scaled.
      k: keys.
      v: values.
      num_keys: number of first keys that count; the rest is padding. All keys by default.
    """
    num_keys = k.shape[1] if num_keys is None else num_keys
    if q.shape[1] <= FULL_BLOCK and k.shape[1] <= FULL_BLOCK:
        return naive_attention(q, k, v, num_keys)
    return _online_attention(q, k, v, num_keys=num_keys)


def naive_attention(
    q: Float[Array, "batch query head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    num_keys: int | None = None,
) -> Float[Array, "batch query head head_dim"]:
    """As `full_attention`, but with all scores at once, in quadratic memory. For short inputs, and for comparison."""
    num_keys = k.shape[1] if num_keys is None else num_keys
    visible = None
    if num_keys < k.shape[1]:
        visible = jnp.broadcast_to(jnp.arange(k.shape[1]) < num_keys, (q.shape[1], k.shape[1]))
    return _attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), visible).swapaxes(1, 2)


def _online_attention(
    q: Float[Array, "batch query head head_dim"],
    k: Float[Array, "batch token head head_dim"],
    v: Float[Array, "batch token head head_dim"],
    *,
    num_keys: Count,
    reach: int | None = None,
    num_sinks: int = 0,
) -> Float[Array, "batch query head head_dim"]:
    """Blocks of queries over blocks of keys, with an online softmax.

    With `reach`, the queries are those of the tokens after the sinks. Each sees `reach` tokens on each side and the
    sinks. Blocks of keys that no query of a block sees are skipped.
    """
    num_queries = q.shape[1]
    size = min(FULL_BLOCK, num_queries)
    queries = _blocks(q.swapaxes(1, 2), size)
    keys, values = (_blocks(x.swapaxes(1, 2), FULL_BLOCK) for x in (k, v))
    first_queries = num_sinks + jnp.arange(len(queries)) * size

    @jax.checkpoint
    def over_queries(_, block):
        query, first_query = block
        sums = _over_keys(query, first_query, keys, values, num_keys, reach, num_sinks)
        return None, (sums.weighted / sums.total[..., None]).astype(query.dtype)

    _, out = jax.lax.scan(over_queries, None, (queries, first_queries))
    return _unblock(out, num_queries).swapaxes(1, 2)


class _Sums(NamedTuple):
    """An online softmax over the keys seen so far."""

    maximum: Float[Array, "batch head query"]  # greatest score
    total: Float[Array, "batch head query"]  # sum of weights, relative to the maximum
    weighted: Float[Array, "batch head query head_dim"]  # weighted sum of values


def _over_keys(
    query: Float[Array, "batch head query head_dim"],
    first_query: Count,
    keys: Float[Array, "block batch head key head_dim"],
    values: Float[Array, "block batch head key head_dim"],
    num_keys: Count,
    reach: int | None,
    num_sinks: int,
) -> _Sums:
    """One block of queries over blocks of keys."""
    first_keys = jnp.arange(len(keys)) * FULL_BLOCK

    def add_block(carry, block):
        (query, first_query, sums), (key, value, first_key) = carry, block
        token = first_key + jnp.arange(FULL_BLOCK)
        visible = token < num_keys
        if reach is not None:
            distance = first_query + jnp.arange(query.shape[-2])[:, None] - token
            visible &= (abs(distance) <= reach) | (token < num_sinks)
        return query, first_query, _add_keys(sums, query, key, value, visible)

    @jax.checkpoint
    def add_if_seen(carry, block):
        if reach is None:
            return add_block(carry, block), None
        first_query, first_key = carry[1], block[2]
        last_query = first_query + query.shape[-2] - 1
        near = (first_key + FULL_BLOCK > first_query - reach) & (first_key <= last_query + reach)
        return jax.lax.cond(near | (first_key < num_sinks), add_block, lambda carry, _: carry, carry, block), None

    start = _Sums(
        jnp.full(query.shape[:-1], HIDDEN, jnp.float32),
        jnp.zeros(query.shape[:-1], jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    (_, _, sums), _ = jax.lax.scan(add_if_seen, (query, first_query, start), (keys, values, first_keys))
    return sums


def _add_keys(sums: _Sums, query: Array, key: Array, value: Array, visible: Bool[Array, ...]) -> _Sums:
    """Adds one block of keys and values to an online softmax."""
    scores = jnp.where(visible, _scores(query, key), HIDDEN)
    # The result does not depend on the maximum, which only prevents overflow: so it needs no gradient.
    maximum = jax.lax.stop_gradient(jnp.maximum(sums.maximum, scores.max(-1)))
    shrink = jnp.exp(sums.maximum - maximum)
    # In a row that has seen no key yet the maximum is HIDDEN itself, and hidden keys would have the weight 1.
    weights = jnp.where(visible, jnp.exp(scores - maximum[..., None]), 0.0)
    total = sums.total * shrink + weights.sum(-1)
    return _Sums(maximum, total, sums.weighted * shrink[..., None] + _mix(weights, value))


def _sink_attention(
    q: Float[Array, "batch sink head head_dim"],
    k_sinks: Float[Array, "batch sink head head_dim"],
    v_sinks: Float[Array, "batch sink head head_dim"],
    k: Float[Array, "batch frame head head_dim"],
    v: Float[Array, "batch frame head head_dim"],
    *,
    num_frames: Count,
    time: TimeAxis,
) -> Float[Array, "batch sink head head_dim"]:
    """Sinks see each other and the frames of all devices, in one softmax whose sums go over the devices.

    Every device gets the same result.
    """
    q, k_sinks, v_sinks = (x.swapaxes(1, 2) for x in (q, k_sinks, v_sinks))
    keys, values = (_blocks(x.swapaxes(1, 2), FULL_BLOCK) for x in (k, v))
    maximum, total, weighted = _over_keys(q, 0, keys, values, num_frames, None, 0)
    scores = _scores(q, k_sinks)
    greatest = time.max(jax.lax.stop_gradient(maximum))
    greatest = jax.lax.stop_gradient(jnp.maximum(greatest, scores.max(-1)))
    shrink = jnp.exp(maximum - greatest)
    weights = jnp.exp(scores - greatest[..., None])
    total = time.sum(total * shrink) + weights.sum(-1)
    weighted = time.sum(weighted * shrink[..., None]) + _mix(weights, v_sinks)
    return (weighted / total[..., None]).astype(q.dtype).swapaxes(1, 2)


def _frame_attention(
    q: Float[Array, "batch frame head head_dim"],
    k: Float[Array, "batch frame head head_dim"],
    v: Float[Array, "batch frame head head_dim"],
    k_sinks: Float[Array, "batch sink head head_dim"],
    v_sinks: Float[Array, "batch sink head head_dim"],
    *,
    reach: int,
    num_hops: int,
    time: TimeAxis,
    query_block: int,
) -> Float[Array, "batch frame head head_dim"]:
    """Frames see `reach` frames on each side and all sinks, in one softmax.

    Queries go in blocks. A block's keys are those of its own frames between two halos: the last `reach` frames of the
    block before, and the first `reach` frames of the block after. A round of the scan takes several blocks.
    """
    num_frames = q.shape[1]
    block = max(reach, min(query_block, num_frames))
    num_blocks = -(-num_frames // block)
    rounds = -(-num_blocks * block // max(FRAMES_PER_ROUND, block))
    blocks_per_round = -(-num_blocks // rounds)

    # (block, batch, head, frame, head_dim), padded to whole rounds.
    q = _blocks(q.swapaxes(1, 2), block, multiple=blocks_per_round)
    k_parts, v_parts = (
        _between_halos(time.pad_with_neighbours(x.swapaxes(1, 2), reach, num_hops), reach, q) for x in (k, v)
    )
    sinks = k_sinks.swapaxes(1, 2), v_sinks.swapaxes(1, 2)
    firsts = jnp.arange(len(q)) * block
    recording = time.first_frame(num_hops), time.end_frame(num_hops)
    rounds = len(q) // blocks_per_round

    @jax.checkpoint
    def attend_round(_, blocks):
        return None, jax.vmap(functools.partial(_attend_block, sinks, reach, recording))(*blocks)

    scanned = (q, k_parts, v_parts, firsts)
    _, out = jax.lax.scan(
        attend_round, None, jax.tree.map(lambda x: x.reshape(rounds, blocks_per_round, *x.shape[1:]), scanned)
    )
    return _unblock(out.reshape(q.shape), num_frames).swapaxes(1, 2)


def _attend_block(
    sinks: tuple[Float[Array, "batch head sink head_dim"], Float[Array, "batch head sink head_dim"]],
    reach: int,
    recording: tuple[Count, Count],
    q: Float[Array, "batch head size head_dim"],
    k_parts: tuple[Array, Array, Array],
    v_parts: tuple[Array, Array, Array],
    first: Int[Array, ""],
) -> Float[Array, "batch head size head_dim"]:
    """One block of queries against its keys and the sinks.

    Args:
      sinks: keys and values of the sinks.
      reach: frames on each side that a frame sees.
      recording: numbers of the recording's first frame, and after its last one.
      q: queries of the block.
      k_parts: keys before the block, in it, and after it.
      v_parts: values before the block, in it, and after it.
      first: number of the block's first frame.
    """
    k_sinks, v_sinks = sinks
    # Frames of queries and keys, counted from the block's first query.
    query = jnp.arange(q.shape[-2])[:, None]
    key = jnp.arange(-reach, q.shape[-2] + reach)
    visible = (abs(query - key) <= reach) & (first + key >= recording[0]) & (first + key < recording[1])
    visible = jnp.pad(visible, ((0, 0), (k_sinks.shape[-2], 0)), constant_values=True)
    keys = jnp.concatenate([k_sinks, *k_parts], axis=-2)
    values = jnp.concatenate([v_sinks, *v_parts], axis=-2)
    return _attend(q, keys, values, visible)


def _between_halos(
    wide: Float[Array, "batch head wider head_dim"], reach: int, queries: Float[Array, "block batch head size head_dim"]
) -> tuple[Array, Array, Array]:
    """Cuts keys (or values) into those before, in and after each block of queries.

    Args:
      wide: keys, padded by `reach` on each side.
      reach: number of keys before a block, and of keys after it.
      queries: the blocks of queries, for their number and size.
    """
    count, size = len(queries), queries.shape[-2]
    missing = count * size + 2 * reach - wide.shape[-2]
    wide = jnp.pad(wide, [(0, 0), (0, 0), (0, missing), (0, 0)])
    blocks = _blocks(wide[..., reach : reach + count * size, :], size)
    edge = wide[None, ..., :reach, :], wide[None, ..., reach + count * size :, :]
    before, after = blocks[:-1, ..., size - reach :, :], blocks[1:, ..., :reach, :]
    return jnp.concatenate([edge[0], before]), blocks, jnp.concatenate([after, edge[1]])


def _attend(
    q: Float[Array, "*batch query head_dim"],
    k: Float[Array, "*batch key head_dim"],
    v: Float[Array, "*batch key head_dim"],
    visible: Bool[Array, "query key"] | None = None,
) -> Float[Array, "*batch query head_dim"]:
    """Softmax attention in one piece."""
    scores = _scores(q, k)
    if visible is not None:
        scores = jnp.where(visible, scores, HIDDEN)
    return _mix(jax.nn.softmax(scores, axis=-1), v).astype(q.dtype)


def _scores(q: Array, k: Array) -> Array:
    """Returns the scaled products of queries and keys, float32."""
    return product("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5


def _mix(weights: Array, v: Array) -> Array:
    """Returns the weighted sum of values, float32. The weights are rounded to v's dtype for the product."""
    return product("...qk,...kd->...qd", weights.astype(v.dtype), v)


def _blocks(x: Float[Array, "*batch token head_dim"], size: int, multiple: int = 1) -> Array:
    """Cuts tokens into blocks on a new leading axis. Zeros fill them up to a multiple of `multiple` blocks."""
    *batch, num_tokens, dim = x.shape
    num_blocks = -(-num_tokens // (size * multiple)) * multiple
    x = jnp.pad(x, [*[(0, 0)] * len(batch), (0, num_blocks * size - num_tokens), (0, 0)])
    return jnp.moveaxis(x.reshape(*batch, num_blocks, size, dim), -3, 0)


def _unblock(blocks: Float[Array, "block *batch size head_dim"], num_tokens: int) -> Array:
    """The inverse of `_blocks`: joins the blocks and drops the padding."""
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :num_tokens, :]
