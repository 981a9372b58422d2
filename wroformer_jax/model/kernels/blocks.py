"""Attention of one block of queries to its keys, inside a kernel: values and gradients.

Several heads share a group of 128 lanes. To tell them apart, the queries are laid out once for each head, with zeros
in the lanes of the others. The contraction over all 128 lanes then gives the scores of that head, and costs the matrix
unit what a contraction over one head alone would cost.

Scores are kept transposed, with keys along the sublanes and (head, query) along the lanes. So the softmax's maximum and
sum are operations between registers, not within them, and the products for the gradients of keys and values need no
transposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from wroformer_jax.model.kernels.sizes import ROW_MULTIPLE, Heads

# Added to the scores of keys that a query may not see.
HIDDEN = -1e30
# The least maximum of scores: a hidden key gets the weight 0 also where all are hidden, and the output is then 0.
LEAST_MAXIMUM = -1e28
LEAST_SUM = 1e-30


def clear_rows(x: Float[Array, "row group"], count: Array | int) -> Float[Array, "row group"]:
    """Returns x with zeros from row `count` on, whatever is there. x may be longer than the array that it is from."""
    whole = 0  # rows of the registers that stay as they are, if that is known when the kernel is compiled
    if isinstance(count, int):
        if count >= len(x):
            return x
        whole = count // ROW_MULTIPLE * ROW_MULTIPLE
    last = join_rows(x[whole:], jnp.zeros_like(x[whole:]), count - whole)
    return jnp.concatenate([x[:whole], last]) if whole else last


def join_rows(
    x: Float[Array, "row group"], y: Float[Array, "row group"], count: Array | int
) -> Float[Array, "row group"]:
    """Returns the first `count` rows of x, and y's from there on."""
    if x.dtype == jnp.float32:
        return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) < count, x, y)
    x_bits, y_bits = pltpu.bitcast(x, jnp.int32), pltpu.bitcast(y, jnp.int32)  # two rows of bfloat16 in one of int32
    row = 2 * jax.lax.broadcasted_iota(jnp.int32, x_bits.shape, 0)
    from_x = jnp.where(row + 1 < count, -1, jnp.where(row < count, 0xFFFF, 0))
    return pltpu.bitcast((x_bits & from_x) | (y_bits & ~from_x), x.dtype)


def attend(
    q: list[Float[Array, "block group"]],
    k: list[Float[Array, "key group"]],
    v: list[Float[Array, "key group"]],
    bias: list[Float[Array, "seen columns"] | None],
    heads: Heads,
) -> list[Float[Array, "block group"]]:
    """Returns the weighted sums of values, for each of several blocks of queries and groups of heads.

    They go through each step together, so that the compiler has other work to do while one of them waits. What is added
    to the scores (the bias) has a row for each key that any query may see; keys after these are hidden.
    """
    out: list = [None] * len(q)
    for first in heads.rounds:
        scores = [_product(k, _spread(q, first, heads), "nt", heads) for q, k in zip(q, k, strict=True)]
        weights = [_for_all_keys(_softmax(x, y), z) for x, y, z in zip(scores, bias, k, strict=True)]
        sums = [_product(w, v, "tn", heads) for w, v in zip(weights, v, strict=True)]
        out = [_gather(total, x, first, heads) for total, x in zip(out, sums, strict=True)]
    return out


def over_blocks(count: int, at_once: int, work: Callable[[list], None]) -> None:
    """Calls work(numbers) for the numbers below count, one or two at a time. See `attend` for why."""
    if count >= at_once and count > 1:
        jax.lax.fori_loop(0, count // at_once, lambda step, _: work([at_once * step + i for i in range(at_once)]), None)
    if count == 1 or count % at_once:
        work([count - 1])


class Gradients(NamedTuple):
    """Gradients of one block and one group of heads: float32."""

    q: Float[Array, "block group"]
    k: Float[Array, "key group"]
    v: Float[Array, "key group"]


def attend_backward(
    q: list[Float[Array, "block group"]],
    k: list[Float[Array, "key group"]],
    v: list[Float[Array, "key group"]],
    bias: list[Float[Array, "seen columns"] | None],
    out_gradient: list[Float[Array, "block group"]],
    heads: Heads,
) -> list[Gradients]:
    """Returns the gradients of `attend`, whose weights it computes again."""
    dq: list = [None] * len(q)
    dk: list = [None] * len(q)
    dv: list = [None] * len(q)
    for first in heads.rounds:
        queries = [_spread(x, first, heads) for x in q]
        outs = [_spread(x, first, heads) for x in out_gradient]
        scores = [_product(x, y, "nt", heads) for x, y in zip(k, queries, strict=True)]
        d_weights = [_product(x, y, "nt", heads) for x, y in zip(v, outs, strict=True)]
        weights = [_softmax(x, y) for x, y in zip(scores, bias, strict=True)]
        d_scores = [_softmax_backward(x, y[: len(x)]) for x, y in zip(weights, d_weights, strict=True)]
        weights, d_scores = ([_for_all_keys(x, k[0]) for x in both] for both in (weights, d_scores))
        dv = [_plus(x, _product(y, z, "nn", heads)) for x, y, z in zip(dv, weights, outs, strict=True)]
        dk = [_plus(x, _product(y, z, "nn", heads)) for x, y, z in zip(dk, d_scores, queries, strict=True)]
        dq = [_gather(x, _product(y, z, "tn", heads), first, heads) for x, y, z in zip(dq, d_scores, k, strict=True)]
    return [Gradients(*gradients) for gradients in zip(dq, dk, dv, strict=True)]


def _softmax_backward(
    weights: Float[Array, "seen columns"], d_weights: Float[Array, "seen columns"]
) -> Float[Array, "seen columns"]:
    """Returns the gradient of the scores from that of the weights."""
    product = weights * d_weights
    return product - weights * product.sum(0, keepdims=True)


def _for_all_keys(weights: Float[Array, "seen columns"], k: Float[Array, "key group"]) -> Float[Array, "key columns"]:
    """Rounds weights to the dtype of products, with zeros for the keys that no query sees."""
    if len(weights) < len(k):
        weights = jnp.concatenate([weights, jnp.zeros((len(k) - len(weights), weights.shape[1]), weights.dtype)])
    return weights.astype(k.dtype)


def _softmax(scores: Float[Array, "key columns"], bias: Array | None) -> Float[Array, "seen columns"]:
    """Softmax over the keys that any query may see."""
    scores = scores if bias is None else scores[: len(bias)] + bias
    maximum = jnp.maximum(scores.max(0, keepdims=True), LEAST_MAXIMUM)
    weights = jnp.exp(scores - maximum)
    return weights * (1 / jnp.maximum(weights.sum(0, keepdims=True), LEAST_SUM))


def _spread(x: Float[Array, "block group"], first: int, heads: Heads) -> Float[Array, "columns group"]:
    """Lays x out once for each head of a round, with zeros in the lanes of the others."""
    if heads.group == heads.head_dim:
        return x
    bits = x if x.dtype == jnp.float32 else pltpu.bitcast(x, jnp.int32)  # two rows of bfloat16 in one of int32
    head = _head_of_lane(bits.shape, heads)
    copies = [jnp.where(head == first + i, bits, jnp.zeros_like(bits)) for i in range(heads.at_once)]
    copies = copies if x.dtype == jnp.float32 else [pltpu.bitcast(copy, x.dtype) for copy in copies]
    return jnp.concatenate(copies, axis=0)


def _gather(
    total: Float[Array, "block group"] | None, x: Float[Array, "columns group"], first: int, heads: Heads
) -> Float[Array, "block group"]:
    """The inverse of `_spread`: adds to `total` the lanes of each head from its own copy."""
    if heads.group == heads.head_dim:
        return x
    block = x.shape[0] // heads.at_once
    head = _head_of_lane((block, x.shape[1]), heads)
    for i in range(heads.at_once):
        part = x[i * block : (i + 1) * block]
        total = part if total is None else jnp.where(head == first + i, part, total)
    assert total is not None
    return total


def _head_of_lane(shape: tuple[int, ...], heads: Heads) -> Int[Array, "row group"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) >> (heads.head_dim.bit_length() - 1)


def _plus(total: Array | None, x: Array) -> Array:
    return x if total is None else total + x


def _product(x: Array, y: Array, kind: str, heads: Heads) -> Array:
    """Returns a float32 product of matrices, each of which is taken as it is ("n") or transposed ("t")."""
    dimensions = (((0 if kind[0] == "t" else 1,), (1 if kind[1] == "t" else 0,)), ((), ()))
    if heads.widen:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)
