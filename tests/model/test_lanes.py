"""Heads side by side in lanes (lanes.py) give the numbers of the scan form, values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import relative_error, tiny_config

from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer

SIZES = {
    "num_bands": 12, "sample_rate": 16000, "stft_n_fft": 512, "stft_hop_length": 160, "stft_win_length": 512,
    "dim": 16, "heads": 2, "dim_head": 8, "dim_feed_forward": 16, "dim_mask": 16, "mask_layers": 2, "depth": 1,
    "window": 6, "num_sinks": 3, "remat": "none",
}  # fmt: skip
MEL = tiny_config(**SIZES)
AUDIO = np.random.default_rng(0).standard_normal((1, 2, 12_077)).astype(np.float32)


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
        {"places_at_once": 300, "frames_at_once": 40},
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
