"""Attention equals a dense masked softmax; and what a token sees, how much memory it takes, and its dtype."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import relative_error

from wroformer_jax.errors import InputError
from wroformer_jax.model.attention import full_attention, windowed_sink_attention

HEADS, DIM_HEAD = 2, 8


def visible(tokens, window, sinks):
    i, j = np.arange(tokens)[:, None], np.arange(tokens)
    return (i < sinks) | (j < sinks) | (abs(i - j) <= window // 2)


def dense_attention(q, k, v, mask):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")


def random_qkv(tokens, seed=0, batch=2):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal((batch, tokens, HEADS, DIM_HEAD), np.float32)) for _ in range(3))


def value_and_gradients(attend, qkv):
    """Returns the output, and the gradients of its product with fixed random weights."""
    weights = np.random.default_rng(9).standard_normal(qkv[0].shape, np.float32)

    @jax.jit
    def run(qkv):
        out, pull = jax.vjp(attend, *qkv)
        return out, pull(weights)

    return run(qkv)


def assert_same(attend, reference, qkv):
    """Values and gradients within 1e-5."""
    for actual, expected in zip(
        jax.tree.leaves(value_and_gradients(attend, qkv)),
        jax.tree.leaves(value_and_gradients(reference, qkv)),
        strict=True,
    ):
        # A sink's gradient is a sum over all tokens and grows with their number: so does the bound.
        bound = 1e-5 * max(1.0, float(abs(expected).max()))
        np.testing.assert_allclose(actual, expected, atol=bound, rtol=0)


QUICK = {(1, 10, 8), (2, 1, 8), (9, 0, 1), (73, 7, 0), (577, 10, 8), (1000, 64, 1)}  # tokens, window, sinks
ALL = [
    (tokens, window, sinks)
    for tokens in (1, 2, 9, 73, 577, 1000)
    for window, sinks in ((0, 1), (1, 8), (7, 0), (10, 8), (64, 1))
]


@pytest.mark.parametrize(
    ("tokens", "window", "sinks"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in ALL],
)
def test_windowed_sink_attention_is_the_dense_masked_softmax(tokens, window, sinks):
    qkv = random_qkv(tokens, seed=tokens)
    mask = visible(tokens, window, sinks)
    assert_same(
        lambda *qkv: windowed_sink_attention(*qkv, window=window, num_sinks=sinks),
        lambda *qkv: dense_attention(*qkv, mask),
        qkv,
    )


@pytest.mark.parametrize(
    "tokens", [1, 60, 513, pytest.param(512, marks=pytest.mark.slow), pytest.param(1100, marks=pytest.mark.slow)]
)
def test_full_attention_is_the_dense_softmax(tokens):
    qkv = random_qkv(tokens, seed=tokens)
    assert_same(full_attention, jax.nn.dot_product_attention, qkv)


@pytest.mark.parametrize(
    ("tokens", "window", "sinks"),
    [
        (150, 1000, 3),
        (1300, 1100, 5),
        pytest.param(2100, 1200, 0, marks=pytest.mark.slow),
        pytest.param(700, 1396, 2, marks=pytest.mark.slow),
    ],
)
def test_long_windows_are_the_dense_masked_softmax(tokens, window, sinks):
    qkv = random_qkv(tokens, batch=1)
    mask = visible(tokens, window, sinks)
    assert_same(
        lambda *qkv: windowed_sink_attention(*qkv, window=window, num_sinks=sinks),
        lambda *qkv: dense_attention(*qkv, mask),
        qkv,
    )


@pytest.mark.parametrize(("window", "sinks"), [(-1, 0), (10, -1)])
def test_negative_sizes_are_refused(window, sinks):
    with pytest.raises(InputError, match="expected neither to be negative"):
        windowed_sink_attention(*random_qkv(5), window=window, num_sinks=sinks)


def test_gradients_show_what_a_frame_sees():
    tokens, window, sinks = 700, 10, 4
    q, k, v = random_qkv(tokens, batch=1)

    @jax.jit
    def seen_from(token):
        def output(v):
            return windowed_sink_attention(q, k, v, window=window, num_sinks=sinks)[0, token].sum()

        return abs(jax.grad(output)(v)).sum((0, 2, 3)) > 0

    mask = visible(tokens, window, sinks)
    # Sinks, the first frames, frames around the borders of blocks (64) and rounds (512), the last frame.
    for token in (0, 3, 4, 5, 67, 68, 69, 515, 516, 517, 699):
        np.testing.assert_array_equal(seen_from(token), mask[token], err_msg=f"token {token}")


def test_large_scores_stay_finite():
    q, k, v = random_qkv(600)
    for attend in (full_attention, lambda *qkv: windowed_sink_attention(*qkv, window=10, num_sinks=8)):
        out, gradients = value_and_gradients(attend, (100 * q, 100 * k, v))
        assert all(np.isfinite(x).all() for x in (out, *gradients))


def test_bfloat16_inputs_give_bfloat16_close_to_float32():
    qkv = random_qkv(300)
    halves = tuple(jnp.asarray(x, jnp.bfloat16) for x in qkv)
    for attend in (full_attention, lambda *qkv: windowed_sink_attention(*qkv, window=10, num_sinks=8)):
        out = attend(*halves)
        assert out.dtype == jnp.bfloat16
        assert relative_error(out.astype(jnp.float32), attend(*qkv)) < 2e-2


@pytest.mark.parametrize("window", [10, None, pytest.param(3000, marks=pytest.mark.slow)])
def test_memory_is_linear(window):
    def attend(q, k, v):
        if window is None:
            return full_attention(q, k, v)
        return windowed_sink_attention(q, k, v, window=window, num_sinks=8)

    def peak_bytes(tokens):
        shape = jax.ShapeDtypeStruct((1, tokens, 4, 64), jnp.float32)
        step = jax.jit(jax.value_and_grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2)))
        memory = step.lower(shape, shape, shape).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes

    sizes = [peak_bytes(tokens) for tokens in (8192, 16384, 32768, 65536)]
    for shorter, longer in itertools.pairwise(sizes):
        assert longer <= 2.1 * shorter
