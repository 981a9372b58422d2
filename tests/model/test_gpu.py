"""cuDNN's form of attention gives the scan form's numbers. XLA stands in for cuDNN, which needs a GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wroformer_jax.config import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model import attention, gpu
from wroformer_jax.model.blocks import freq_attention, time_attention
from wroformer_jax.model.implementations import settled

HEADS, DIM_HEAD = 2, 8


def random_qkv(tokens):
    rng = np.random.default_rng(tokens)
    return tuple(rng.standard_normal((3, 2, tokens, HEADS, DIM_HEAD), np.float32))


def value_and_gradients(attend, qkv, counting):
    """Returns the outputs that are no padding, and the gradients of their product with fixed random weights."""
    weights = np.random.default_rng(9).standard_normal(qkv[0].shape, np.float32)
    weights[:, counting:] = 0

    @jax.jit
    def run(*qkv):
        out, pull = jax.vjp(attend, *qkv)
        return out[:, :counting], *pull(weights)

    return run(*qkv)


QUICK = {(73, 7, 0, 20), (230, 10, 8, 3)}  # tokens, window, sinks, padding
SIZES = ((0, 1), (1, 8), (7, 0), (10, 8), (64, 1))
CASES = [
    *((tokens, *sizes, 0) for tokens in (1, 2, 9, 73, 577, 1000) for sizes in SIZES),
    *((577, 10, 8, padding) for padding in (1, 33, 130)),
    *((73, 7, 0, 20), (120, 10, 3, 1), (230, 10, 8, 3), (1000, 250, 5, 7), (600, 300, 3, 0)),
]


@pytest.mark.parametrize(
    ("tokens", "window", "sinks", "padding"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_windowed_sink_attention_is_that_of_the_scan_form(tokens, window, sinks, padding):
    sizes = {"window": window, "num_sinks": sinks, "num_hops": tokens - sinks - 1 - padding if padding else None}
    qkv = random_qkv(tokens)
    found = value_and_gradients(
        functools.partial(gpu.windowed_sink_attention, **sizes, implementation="xla"), qkv, tokens - padding
    )
    expected = value_and_gradients(functools.partial(attention.windowed_sink_attention, **sizes), qkv, tokens - padding)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5 * max(1.0, float(abs(reference).max())), rtol=0)


@pytest.mark.parametrize(("tokens", "num_keys"), [(13, 11), pytest.param(600, None, marks=pytest.mark.slow)])
def test_full_attention_is_that_of_the_scan_form(tokens, num_keys):
    qkv = random_qkv(tokens)
    found = value_and_gradients(
        functools.partial(gpu.full_attention, num_keys=num_keys, implementation="xla"), qkv, num_keys
    )
    expected = value_and_gradients(functools.partial(attention.full_attention, num_keys=num_keys), qkv, num_keys)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "window", "sinks"), [(809, 10, 8), (804, 10, 3), (31, 10, 3), (9, 10, 8), (700, 70, 1)]
)
def test_cudnn_gets_what_it_takes(monkeypatch, tokens, window, sinks):
    """Even numbers of queries and keys, and a mask that has all heads and that all rows share."""
    calls = []
    by_xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")

    def record(q, k, v, *, mask=None, implementation, **lengths):
        assert implementation == "cudnn"
        calls.append((q.shape, k.shape, None if mask is None else mask.shape))
        return by_xla(q, k, v, mask=mask, **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    shape = jax.ShapeDtypeStruct((4, tokens, HEADS, DIM_HEAD), jnp.bfloat16)
    attend = functools.partial(gpu.windowed_sink_attention, window=window, num_sinks=sinks)
    assert jax.eval_shape(attend, shape, shape, shape).shape == shape.shape
    assert calls
    for q, k, mask in calls:
        assert q[1] % 2 == k[1] % 2 == 0
        assert mask in (None, (1, HEADS, q[1], k[1]))


@pytest.mark.parametrize("mixer", ["windowed_sink", "full"])
def test_settings_that_say_cudnn_get_it_along_time_and_over_bands(monkeypatch, mixer):
    calls = []

    def by_xla(*qkv, implementation, **options):
        calls.append(implementation)
        return own(*qkv, implementation="xla", **options)

    own = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    scan = ModelConfig(attention_impl="scan", time_mixer=mixer, num_sinks=3)
    cudnn = dataclasses.replace(scan, attention_impl="cudnn")
    qkv = random_qkv(41)
    for attention_of in (functools.partial(time_attention, num_hops=30), freq_attention):
        done = len(calls)
        # Functions that are new, so that nothing traced before is used again.
        forms = [functools.partial(lambda attend, *qkv: attend(*qkv), attention_of(config)) for config in (cudnn, scan)]
        found, expected = (jax.jit(form)(*qkv)[:, :34] for form in forms)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        assert set(calls[done:]) == {"cudnn"}


def test_blocks_have_keys_for_whole_tiles():
    assert gpu.Blocks.of(801, reach=5, num_sinks=8) == (110, 128, 5, 8, 8)
    for reach in range(gpu.MAX_REACH + 1):
        blocks = gpu.Blocks.of(5000, reach, num_sinks=8)
        assert blocks.keys % gpu.TILE == 0
        assert blocks.frames >= 8 + 2 * reach > blocks.keys - blocks.frames - 2
        assert blocks.count * blocks.frames >= 5000 > (blocks.count - 1) * blocks.frames


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({"dtype": "bfloat16"}, "cudnn"),
        ({"dtype": "bfloat16", "time_mixer": "full"}, "cudnn"),
        ({"dtype": "float32"}, "scan"),
        ({"dtype": "bfloat16", "time_mixer": "naive"}, "scan"),
        ({"dtype": "bfloat16", "dim_head": 12}, "scan"),
        ({"dtype": "bfloat16", "dim_head": 136}, "scan"),
    ],
)
def test_auto_takes_cudnn_on_a_gpu_where_it_serves(changes, chosen):
    assert settled(ModelConfig(**changes), "gpu").attention_impl == chosen
    assert settled(ModelConfig(**changes), "cpu").attention_impl == "scan"


def test_cudnn_that_does_not_serve_is_refused():
    config = ModelConfig(attention_impl="cudnn")
    with pytest.raises(InputError, match="attention_impl is 'cudnn', but cuDNN does not serve dtype 'float32'"):
        settled(config, "gpu")
    with pytest.raises(InputError, match="needs a GPU, but the device is a CPU"):
        settled(config, "cpu")
