"""The model in pieces (forward.py) is the model written straight down (`RoFormer.plain`), in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import relative_error, tiny_config

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.band_layers import MaskEstimator
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer

SIZES = {
    "num_bands": 12, "sample_rate": 16000, "stft_n_fft": 512, "stft_hop_length": 160, "stft_win_length": 512,
    "dim": 8, "dim_head": 4, "dim_feed_forward": 16, "dim_mask": 16, "mask_layers": 2, "remat": "none",
}  # fmt: skip
MEL = tiny_config(**SIZES, window=6, num_sinks=3, stems=("vocals", "other"))
BS = tiny_config(
    **SIZES | {"band_scheme": "band_split"}, freqs_per_bands=(4,) * 10 + (217,), time_mixer="full", num_sinks=0,
    time_transformer_depth=2, skip_connection=True,
)  # fmt: skip
WITHOUT_SINKS = dataclasses.replace(MEL, num_sinks=0, skip_connection=True, channels=1, zero_dc=False)
AUDIO = np.random.default_rng(0).standard_normal((2, 2, 8077)).astype(np.float32)  # 51 frames: no piece divides them


def measured(config, method="stems_and_masks"):
    """Returns a scalar of stems and masks, the stems, and the scalar's gradients: ((scalar, stems), gradients)."""
    model, audio = RoFormer(config), AUDIO[:, : config.channels]
    params = init_params(model, 0)

    def stems_and_masks(params):
        if method != "plain":
            return model.apply({"params": params}, audio, method=method)
        stems, state = model.apply(
            {"params": params}, audio, method=method,
            capture_intermediates=lambda module, _: isinstance(module, MaskEstimator),
        )  # fmt: skip
        [masks] = state["intermediates"]["mask_estimator"]["__call__"]
        return stems, *masks

    def scalar(params):
        stems, *masks = stems_and_masks(params)
        return jnp.sum(stems * jnp.cos(jnp.arange(stems.shape[-1]) * 0.01)) + jnp.sum(masks[0] * masks[1]), stems

    return jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)


@pytest.fixture(scope="module")
def plain():
    """The results of `RoFormer.plain` by config, each computed once."""
    found = {}

    def results(config):
        if config not in found:
            found[config] = measured(config, "plain")
        return found[config]

    return results


@pytest.mark.parametrize(
    ("config", "memory"),
    [
        pytest.param(MEL, {"places_at_once": 300, "remat": "block", "blocks_per_save": 2}, marks=pytest.mark.slow),
        pytest.param(BS, {"places_at_once": 200, "remat": "offload", "blocks_per_save": 2}, marks=pytest.mark.slow),
        pytest.param(WITHOUT_SINKS, {"remat": "dots"}, marks=pytest.mark.slow),
        pytest.param(MEL, {}, marks=pytest.mark.slow),
        pytest.param(MEL, {"places_at_once": 1, "remat": "offload"}, marks=pytest.mark.slow),
        pytest.param(MEL, {"places_at_once": 300}, marks=pytest.mark.slow),
        pytest.param(BS, {}, marks=pytest.mark.slow),
        pytest.param(BS, {"places_at_once": 200, "remat": "block"}, marks=pytest.mark.slow),
        pytest.param(WITHOUT_SINKS, {"places_at_once": 100, "remat": "block"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_model_in_pieces_is_the_plain_model(plain, config, memory):
    """Values and all gradients, whatever the memory settings."""
    (scalar, stems), gradients = measured(dataclasses.replace(config, **memory))
    (expected, expected_stems), expected_gradients = plain(config)
    np.testing.assert_allclose(scalar, expected, rtol=1e-5)
    assert relative_error(stems, expected_stems) < 1e-5
    assert jax.tree.structure(gradients) == jax.tree.structure(expected_gradients)
    for path, gradient in jax.tree_util.tree_leaves_with_path(expected_gradients):
        name = jax.tree_util.keystr(path)
        if "rotary" in name:  # constants
            continue
        found = gradients
        for entry in path:
            found = found[entry.key]
        assert relative_error(found, gradient) < 1e-5, name


@pytest.mark.slow
def test_the_stream_may_be_rounded(plain):
    """A bfloat16 stream costs errors of the order of bfloat16's rounding."""
    config = dataclasses.replace(MEL, stream_dtype="bfloat16")
    stems = jax.jit(RoFormer(config).apply)({"params": init_params(RoFormer(config), 0)}, AUDIO)
    assert 1e-5 < relative_error(stems, plain(MEL)[0][1]) < 2e-2


def temporaries(config, seconds):
    """Returns the bytes that a gradient allocates beside its arguments."""
    model = RoFormer(config)
    params = jax.eval_shape(lambda: init_params(model, 0))
    audio = jax.ShapeDtypeStruct((1, config.channels, int(seconds * config.sample_rate)), jnp.float32)
    step = jax.jit(jax.grad(lambda params, audio: jnp.sum(jnp.abs(model.apply({"params": params}, audio)))))
    return step.lower(params, audio).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_in_pieces_memory_is_the_residual_stream():
    # Wide and mono, so that the stream is large beside the signals.
    mono = dataclasses.replace(MEL, dim=64, channels=1, stems=("vocals",))
    config = dataclasses.replace(mono, remat="block", places_at_once=1000)
    more = temporaries(config, 20) - temporaries(config, 10)  # for another 1000 frames
    stream = config.num_bands * config.dim * 4 * 1000
    # One stream is kept per block. Beside these, some four: the stream, its cotangent, and copies that XLA makes.
    assert more < (config.depth + 5) * stream
    at_once = dataclasses.replace(config, places_at_once=0)
    assert temporaries(at_once, 20) - temporaries(at_once, 10) > 2 * more


@pytest.mark.slow
def test_the_naive_attention_is_the_full_one():
    full = dataclasses.replace(BS, depth=1, time_transformer_depth=1, skip_connection=False)
    params = init_params(RoFormer(full), 0)
    stems, others = (
        jax.jit(RoFormer(config).apply)({"params": params}, AUDIO)
        for config in (full, dataclasses.replace(full, time_mixer="naive"))
    )
    assert relative_error(others, stems) < 1e-6


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"remat": "disk"}, "remat is 'disk', expected one of 'none', 'block', 'dots', 'offload'"),
        ({"blocks_per_save": 2, "remat": "none"}, "blocks_per_save is 2, which goes with remat 'block' or 'offload'"),
        ({"places_at_once": 9, "remat": "dots"}, "places_at_once computes products again"),
        ({"blocks_per_save": 4}, "blocks_per_save is 4, which does not divide depth = 6"),
        ({"blocks_per_save": 0}, "blocks_per_save is 0, expected a whole number of at least 1"),
        ({"places_at_once": -1}, "places_at_once is -1, expected a whole number of at least 0"),
        ({"stream_dtype": "float16"}, "stream_dtype is 'float16', expected one of"),
    ],
)
def test_impossible_settings_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        ModelConfig(**fields)
