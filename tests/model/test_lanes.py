"""Heads side by side in lanes (lanes.py) give the numbers of the scan form, values and gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from support.helpers import relative_error, tiny_config

from wroformer_jax.model.blocks import time_mixer
from wroformer_jax.model.lanes import folded, lane_tables
from wroformer_jax.model.layers import Rotary
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.model.rotary import rotary_frequencies

SIZES = {
    "num_bands": 12, "sample_rate": 16000, "stft_n_fft": 512, "stft_hop_length": 160, "stft_win_length": 512,
    "dim": 16, "heads": 2, "dim_head": 8, "dim_feed_forward": 16, "dim_mask": 16, "mask_layers": 2, "depth": 1,
    "window": 6, "num_sinks": 3, "remat": "none",
}  # fmt: skip
MEL = tiny_config(**SIZES)
AUDIO = np.random.default_rng(0).standard_normal((1, 2, 12_077)).astype(np.float32)


@pytest.mark.parametrize("changes", [{}, {"time_mixer": "full"}], ids=["windowed", "full"])
def test_a_mixer_in_lanes_is_the_mixer_by_scan(changes):
    """For all rows but those of padding; with a third head, and heads that fill no lanes."""
    config = dataclasses.replace(MEL, heads=3, dim_head=12, **changes)
    in_lanes = dataclasses.replace(config, attention_impl="interpret")
    x = jax.random.normal(jax.random.key(0), (2, 70, config.dim))
    tables: Any = Rotary(config.dim_head).apply({"params": {"freqs": rotary_frequencies(12)}}, x.shape[1])
    num_hops = x.shape[1] - config.num_sinks - 5  # four tokens are padding
    plain, ours = time_mixer(config, num_hops)(), time_mixer(in_lanes, num_hops)()
    params = meta.unbox(plain.init(jax.random.key(1), x, tables)["params"])

    def scalar_of(mix):
        def scalar(params, x):
            out = mix(params, x)[:, : config.num_sinks + num_hops + 1]
            return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

        return jax.jit(jax.value_and_grad(scalar, (0, 1), has_aux=True))

    def mix_in_lanes(params, x):
        mixer = {"time": {"mixer_0": params}}
        own = folded(in_lanes, mixer)["time"]["mixer_0"]
        return ours.apply({"params": own}, x, lane_tables(in_lanes, tables))

    (_, expected), gradients = scalar_of(lambda params, x: plain.apply({"params": params}, x, tables))(params, x)
    (_, found), our_gradients = scalar_of(mix_in_lanes)(params, x)
    assert relative_error(found, expected) < 2e-6
    for ours_, theirs in zip(jax.tree.leaves(our_gradients), jax.tree.leaves(gradients), strict=True):
        assert relative_error(ours_, theirs) < 5e-6


def measured(config):
    """Returns a scalar of the stems, the stems, and the scalar's gradients: ((scalar, stems), gradients)."""
    model, audio = RoFormer(config), AUDIO[:, : config.channels]

    def scalar(params):
        stems = model.apply({"params": params}, audio)
        return jnp.sum(stems * jnp.cos(jnp.arange(stems.shape[-1]) * 0.01)), stems

    return jax.jit(jax.value_and_grad(scalar, has_aux=True))(init_params(model, 0))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"places_at_once": 300, "frames_at_once": 40}, marks=pytest.mark.slow),
        pytest.param({"dim_head": 12, "heads": 3}, marks=pytest.mark.slow),
        pytest.param({"num_sinks": 0, "remat": "block"}, marks=pytest.mark.slow),
        pytest.param({"time_mixer": "full", "num_sinks": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_model_in_lanes_is_the_model_by_scan(changes):
    config = dataclasses.replace(MEL, **changes)
    (expected, stems), gradients = measured(dataclasses.replace(config, attention_impl="scan"))
    (found, ours), our_gradients = measured(dataclasses.replace(config, attention_impl="interpret"))
    assert relative_error(ours, stems) < 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        if path[0].key.endswith("_rotary"):  # constants
            continue
        own = our_gradients
        for key in path:
            own = own[key.key]
        assert relative_error(own, gradient) < 2e-5, jax.tree_util.keystr(path)
