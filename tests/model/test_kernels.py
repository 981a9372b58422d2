"""The TPU kernels, run without a TPU, equal the plain forms: values and gradients. And TPU compilers take them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from support.helpers import relative_error
from support.tpus import libtpu_environment, needs_libtpu  # noqa: F401

from wroformer_jax.model.attention import full_attention, windowed_sink_attention
from wroformer_jax.model.kernels import windows
from wroformer_jax.model.kernels.dense import MAX_TOKENS, dense_lanes, serves_dense
from wroformer_jax.model.kernels.windowed import aligned_tokens, serves_windowed, windowed_lanes
from wroformer_jax.model.kernels.windows import MAX_REACH
from wroformer_jax.planning.topology import find_topology

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def short_tiles(monkeypatch):
    """Tiles of 128 tokens, so that short rows have several."""
    monkeypatch.setattr(windows, "TILE", 128)
    jax.clear_caches()
    yield
    jax.clear_caches()


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))


def dense_masked(q, k, v, visible, head_dim):
    """Softmax attention of scaled queries with heads side by side, all scores at once."""
    q, k, v = (x.reshape(*x.shape[:2], -1, head_dim) for x in (q, k, v))
    scores = jnp.einsum("rqhd,rkhd->rhqk", q, k, precision="highest")
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
    return jnp.einsum("rhqk,rkhd->rqhd", weights, v, precision="highest").reshape(*q.shape[:2], -1)


def dense_windowed(q, k, v, k_sinks, v_sinks, bounds, *, reach, head_dim):
    """What `windowed_lanes` is to give, by a mask over all tokens."""
    i = np.arange(q.shape[1])
    near = (abs(i[:, None] - i) <= reach) & (i >= bounds[0]) & (i < bounds[1])
    visible = np.concatenate([np.ones((len(i), k_sinks.shape[1]), bool), near], axis=1)
    keys, values = jnp.concatenate([k_sinks, k], axis=1), jnp.concatenate([v_sinks, v], axis=1)
    return dense_masked(q, keys, values, visible, head_dim)


def pulled(attend, inputs, out_gradient):
    """The output and the gradients of all inputs."""

    @jax.jit
    def run(inputs, out_gradient):
        out, pull = jax.vjp(attend, *inputs)
        return out, *pull(out_gradient)

    return run(inputs, out_gradient)


def assert_same(attend, reference, inputs, out_gradient, kept=slice(None)):
    """Values (of the kept tokens) and gradients within 1e-5 of their size."""
    out, *gradients = pulled(attend, inputs, out_gradient)
    expected, *expected_gradients = pulled(reference, inputs, out_gradient)
    assert np.isfinite(out).all()
    for x, y in zip((out[:, kept], *gradients), (expected[:, kept], *expected_gradients), strict=True):
        bound = 1e-5 * max(1.0, float(abs(y).max(initial=0)))
        np.testing.assert_allclose(x, y, atol=bound, rtol=0)


def check_windowed(tokens, reach, sinks, head_dim=64, lanes=128, rows=1, bounds=None):
    rng = np.random.default_rng(tokens)
    q, k, v, out_gradient = (normal(rng, rows, tokens, lanes) for _ in range(4))
    k_sinks, v_sinks = (normal(rng, rows, sinks, lanes) for _ in range(2))
    bounds = np.array([0, tokens] if bounds is None else bounds, np.int32)
    kept = slice(*bounds)
    # Outputs outside the bounds are anything, so nothing may depend on them.
    out_gradient = jnp.zeros_like(out_gradient).at[:, kept].set(out_gradient[:, kept])
    inputs = q * head_dim**-0.5, k, v, k_sinks, v_sinks
    sizes = {"reach": reach, "head_dim": head_dim}
    assert_same(
        functools.partial(windowed_lanes, bounds=jnp.asarray(bounds), **sizes, interpret=True),
        functools.partial(dense_windowed, bounds=bounds, **sizes),
        inputs,
        out_gradient,
        kept,
    )


@pytest.mark.parametrize(
    ("tokens", "reach", "sinks"),
    [
        (73, 5, 8),
        slow(1, 5, 8),
        slow(2, 0, 1),
        slow(9, 3, 0),
        slow(73, 0, 3),
        slow(577, 5, 8),
        slow(577, 32, 1),
        slow(200, 17, 20),
        slow(1000, 16, 16),
        slow(1000, 32, 0),
    ],
)
def test_windowed_is_the_dense_masked_softmax(tokens, reach, sinks):
    check_windowed(tokens, reach, sinks)


@pytest.mark.usefixtures("short_tiles")
@pytest.mark.parametrize(
    ("tokens", "reach", "sinks", "bounds"),
    [
        (300, 5, 8, (9, 271)),
        slow(300, 32, 3, None),
        slow(384, 16, 8, (0, 384)),
        slow(385, 20, 0, (30, 380)),
        slow(500, 5, 17, (130, 250)),
    ],
)
def test_tiles_and_bounds(tokens, reach, sinks, bounds):
    check_windowed(tokens, reach, sinks, bounds=bounds)


@pytest.mark.parametrize(
    ("head_dim", "lanes"), [(8, 128), slow(16, 128), slow(32, 256), slow(64, 640), slow(128, 256), slow(256, 512)]
)
def test_windowed_with_heads_of_any_size(head_dim, lanes):
    check_windowed(130, 5, 8, head_dim=head_dim, lanes=lanes)


@pytest.mark.slow
def test_windowed_with_more_rows_than_a_step_takes():
    check_windowed(64, 5, 8, rows=11)


def test_windowed_is_the_attention_of_the_model():
    """The same numbers as `windowed_sink_attention` for the frames, with sinks as the first tokens of the row."""
    rng = np.random.default_rng(0)
    tokens, sinks, heads, head_dim = 150, 8, 2, 64
    q, k, v, out_gradient = (normal(rng, 1, tokens, heads * head_dim) for _ in range(4))
    out_gradient = out_gradient.at[:, :sinks].set(0)

    def kernel(q, k, v):
        bounds = jnp.array([sinks, tokens], jnp.int32)
        q = q * head_dim**-0.5
        return windowed_lanes(q, k, v, k[:, :sinks], v[:, :sinks], bounds, reach=5, head_dim=head_dim, interpret=True)

    def model(q, k, v):
        q, k, v = (x.reshape(1, tokens, heads, head_dim) for x in (q, k, v))
        return windowed_sink_attention(q, k, v, window=10, num_sinks=sinks).reshape(1, tokens, -1)

    assert_same(kernel, model, (q, k, v), out_gradient, slice(sinks, None))


def check_dense(tokens, head_dim=64, lanes=128, rows=1, num_keys=None):
    rng = np.random.default_rng(tokens)
    q, k, v, out_gradient = (normal(rng, rows, tokens, lanes) for _ in range(4))

    def model(q, k, v):
        q, k, v = (x.reshape(*x.shape[:2], -1, head_dim) for x in (q, k, v))
        return full_attention(q, k, v, num_keys).reshape(rows, tokens, lanes)

    assert_same(
        lambda q, k, v: dense_lanes(q * head_dim**-0.5, k, v, head_dim=head_dim, num_keys=num_keys, interpret=True),
        model,
        (q, k, v),
        out_gradient,
    )


@pytest.mark.parametrize(
    ("tokens", "rows", "num_keys"),
    [(60, 3, None), slow(200, 1, 150), slow(1, 5, None), slow(62, 40, None), slow(64, 2, 1), slow(513, 2, 509)],
)
def test_dense_is_the_attention_of_the_model(tokens, rows, num_keys):
    check_dense(tokens, rows=rows, num_keys=num_keys)


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "lanes"), [(8, 128), (16, 128), (32, 256), (64, 640), (128, 256), (256, 512)])
def test_dense_with_heads_of_any_size(head_dim, lanes):
    check_dense(61, head_dim=head_dim, lanes=lanes, rows=2)
    check_dense(150, head_dim=head_dim, lanes=lanes, num_keys=140)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32():
    rng = np.random.default_rng(0)
    q, k, v, out_gradient = (normal(rng, 2, 91, 128) for _ in range(4))  # odd numbers: two rows share a register
    k_sinks, v_sinks = (normal(rng, 2, 3, 128) for _ in range(2))
    bounds = jnp.array([1, 90], jnp.int32)
    for attend, inputs in (
        (functools.partial(windowed_lanes, bounds=bounds, reach=5), (q / 8, k, v, k_sinks, v_sinks)),
        (dense_lanes, (q / 8, k, v)),
    ):
        attend = functools.partial(attend, head_dim=64, interpret=True)
        halves = pulled(attend, [x.astype(jnp.bfloat16) for x in inputs], out_gradient.astype(jnp.bfloat16))
        for x, y in zip(halves, pulled(attend, inputs, out_gradient), strict=True):
            assert x.dtype == jnp.bfloat16
            assert relative_error(x.astype(jnp.float32), y) < 2e-2


@pytest.mark.slow
def test_in_a_scan_with_recomputation():
    """As the model uses it: in the body of a scan, recomputed in the backward pass, with traced bounds."""
    rng = np.random.default_rng(0)
    x, sinks = normal(rng, 1, 70, 128), normal(rng, 1, 3, 128)

    def summed(attend, x, end):
        def layer(x, _):
            return x + attend(x / 8, x, x, sinks, sinks, jnp.stack([0, end])), None

        return jax.lax.scan(jax.checkpoint(layer), x, length=2)[0].sum()

    sizes = {"reach": 5, "head_dim": 64}
    kernel = jax.jit(
        jax.grad(lambda x, end: summed(functools.partial(windowed_lanes, **sizes, interpret=True), x, end))
    )

    def reference(q, k, v, k_sinks, v_sinks, _):
        return dense_windowed(q, k, v, k_sinks, v_sinks, (0, 70), **sizes)

    np.testing.assert_allclose(kernel(x, 70), jax.grad(summed, argnums=1)(reference, x, 70), atol=1e-4)


@pytest.mark.parametrize("bounds", [(0, 0), slow((40, 45)), slow((0, 100))])
def test_queries_that_see_nothing_stay_finite(bounds):
    rng = np.random.default_rng(0)
    q, k, v = (100 * normal(rng, 1, 100, 128) for _ in range(3))
    none = jnp.zeros((1, 0, 128))
    attend = functools.partial(
        windowed_lanes, bounds=jnp.array(bounds, jnp.int32), reach=0, head_dim=64, interpret=True
    )
    out, *gradients = pulled(attend, (q, k, v, none, none), q)
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    # Within the bounds a token sees itself alone.
    np.testing.assert_allclose(out[:, slice(*bounds)], v[:, slice(*bounds)], rtol=1e-5)


def test_what_the_kernels_serve():
    for head_dim, lanes, fits in (
        (64, 512, True),
        (8, 128, True),
        (48, 384, False),
        (64, 192, False),
        (256, 512, True),
    ):
        assert serves_windowed(num_lanes=lanes, head_dim=head_dim, reach=5) == fits
        assert serves_dense(num_tokens=60, num_lanes=lanes, head_dim=head_dim) == fits
    assert not serves_windowed(num_lanes=128, head_dim=64, reach=MAX_REACH + 1)
    assert not serves_dense(num_tokens=MAX_TOKENS + 1, num_lanes=128, head_dim=64)


@pytest.mark.parametrize(("tokens", "aligned"), [(1, 64), (809, 832), (1216, 1216), (1217, 1280), (24_320, 24_320)])
def test_lengths_that_are_not_padded(tokens, aligned):
    assert aligned_tokens(tokens, 64) == aligned
    assert aligned_tokens(aligned, 64) == aligned


def compile_gradients(name, attend, *shapes):
    """Compiles values and gradients for a TPU."""
    device = find_topology(name).devices[0]
    inputs = [jax.ShapeDtypeStruct(*shape, sharding=SingleDeviceSharding(device)) for shape in shapes]

    def run(out_gradient, *inputs):
        return jax.vjp(attend, *inputs)[1](out_gradient)

    return jax.jit(run).lower(inputs[0], *inputs).compile()


@needs_libtpu
@pytest.mark.usefixtures("libtpu_environment")
@pytest.mark.parametrize(
    ("name", "rows", "tokens", "head_dim", "reach", "dtype"),
    [
        ("v5e:1x1", 60, 832, 64, 5, jnp.bfloat16),
        ("v5p:2x2x1", 60, 832, 64, 5, jnp.bfloat16),
        ("v6e:1x1", 60, 832, 64, 5, jnp.bfloat16),
        ("v5e:1x1", 2, 832, 8, 32, jnp.bfloat16),
        ("v5e:1x1", 2, 832, 128, 16, jnp.bfloat16),
        ("v5e:1x1", 2, 24_320, 64, 5, jnp.float32),
    ],
)
def test_compilers_take_windowed(name, rows, tokens, head_dim, reach, dtype):
    frames, sinks, bounds = ((rows, tokens, 512), dtype), ((rows, 8, 512), dtype), ((2,), jnp.int32)

    def attend(q, k, v, k_sinks, v_sinks, bounds):
        return windowed_lanes(q, k, v, k_sinks, v_sinks, bounds, reach=reach, head_dim=head_dim)

    program = compile_gradients(name, attend, frames, frames, frames, sinks, sinks, bounds)
    memory = program.memory_analysis()
    assert memory is not None
    # Besides inputs and outputs there is nothing of the size of the queries.
    assert memory.temp_size_in_bytes < 0.5 * rows * tokens * 512 * jnp.dtype(dtype).itemsize


@needs_libtpu
@pytest.mark.usefixtures("libtpu_environment")
@pytest.mark.parametrize(
    ("name", "rows", "tokens", "head_dim", "dtype"),
    [
        ("v5e:1x1", 809, 60, 64, jnp.bfloat16),
        ("v5p:2x2x1", 64, 60, 64, jnp.bfloat16),
        ("v6e:1x1", 64, 60, 64, jnp.bfloat16),
        ("v5e:1x1", 64, 61, 8, jnp.bfloat16),
        ("v5e:1x1", 64, 60, 128, jnp.float32),
        ("v5e:1x1", 2, MAX_TOKENS, 64, jnp.bfloat16),
    ],
)
def test_compilers_take_dense(name, rows, tokens, head_dim, dtype):
    tokens = ((rows, tokens, 512), dtype)
    compile_gradients(name, lambda q, k, v: dense_lanes(q, k, v, head_dim=head_dim), tokens, tokens, tokens)
