"""The model equals the public PyTorch package stage by stage; and its gradients, dtypes and parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.helpers import music, relative_error, tiny_config
from support.reference import make_reference

from wroformer_jax.checkpoints.torch_weights import from_state_dict, to_state_dict
from wroformer_jax.errors import InputError
from wroformer_jax.model.params import init_params, logical_axes, trainable_mask
from wroformer_jax.model.roformer import RoFormer

SAMPLES = 22_050

CASES = {
    "windowed sinks, stereo": tiny_config(),
    "full, mono, two stems": tiny_config(
        depth=1, time_mixer="full", num_sinks=0, channels=1, stems=("drums", "bass"), zero_dc=False
    ),
    "several layers, skip connections": tiny_config(
        depth=3,
        time_transformer_depth=2,
        freq_transformer_depth=2,
        skip_connection=True,
        window=7,
        num_sinks=1,
        num_bands=20,
        mask_layers=2,
    ),
    "band split, full": tiny_config(band_scheme="band_split", time_mixer="full", num_sinks=0),
    "band split, windowed sinks, other STFT": tiny_config(
        band_scheme="band_split",
        freqs_per_bands=(3, 10, 100, 400),
        stft_n_fft=1024,
        stft_win_length=800,
        stft_hop_length=200,
        mask_layers=1,
        stems=("vocals", "other"),
    ),
}


def from_reference(config, seed=0):
    reference = make_reference(config, seed=seed)
    params = from_state_dict(config, dict(reference.state_dict()))
    return reference, RoFormer(config), jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def windowed():
    """The first case's reference, model and parameters, shared by the tests that need just any model."""
    return from_reference(CASES["windowed sinks, stereo"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("full, mono, two stems", "band split, full") else name
        for name in CASES
    ],
)
def test_output_and_masks_equal_pytorch(name):
    config = CASES[name]
    reference, model, params = from_reference(config, seed=len(name))
    audio = music(np.random.default_rng(3), 2, config.channels, SAMPLES)
    expected = reference.stages(torch.tensor(audio))
    run = jax.jit(lambda v, a: model.apply(v, a, method="stems_and_masks"))
    output, real, imag = run({"params": params}, audio)
    assert output.dtype == jnp.float32
    assert output.shape[-1] == config.stft_hop_length * (SAMPLES // config.stft_hop_length)
    assert relative_error(output, expected["output"]) < 5e-5
    assert relative_error((real + 1j * imag).swapaxes(-1, -2), expected["mask"]) < 5e-5


def test_every_stage_equals_pytorch(windowed):
    reference, model, params = windowed
    audio = music(np.random.default_rng(4), 1, 2, SAMPLES)
    expected = reference.stages(torch.tensor(audio))

    def stage(method, config=model.config, params=params, **kwargs):
        run = jax.jit(lambda v, a: RoFormer(config).apply(v, a, method=method, **kwargs))
        return run({"params": params}, audio)

    assert relative_error(stage("__call__"), expected["output"]) < 5e-5
    assert relative_error(stage("band_features"), expected["band_split"]) < 5e-5
    assert relative_error(stage("features"), expected["features"]) < 5e-5
    one_block = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    shallow = dataclasses.replace(model.config, depth=1)
    block0 = stage("features", shallow, one_block, keep_sinks=True)
    assert relative_error(block0, expected["block0"]) < 5e-5


def test_masks_alone_equal_pytorch(windowed):
    reference, model, params = windowed
    audio = music(np.random.default_rng(4), 1, 2, SAMPLES)
    real, imag = jax.jit(lambda v, a: model.apply(v, a, method="masks"))({"params": params}, audio)
    expected = reference.stages(torch.tensor(audio))["mask"]
    assert relative_error((real + 1j * imag).swapaxes(-1, -2), expected) < 5e-5


def test_silence_gives_silence_and_finite_gradients(windowed):
    _, model, params = windowed
    silence = jnp.zeros((1, 2, SAMPLES))

    @jax.jit
    def value_and_gradient(params):
        return jax.value_and_grad(lambda p: model.apply({"params": p}, silence).sum())(params)

    value, gradient = value_and_gradient(params)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_remat_does_not_change_the_gradients(windowed):
    _, model, params = windowed
    audio = music(np.random.default_rng(5), 1, 2, 8000)

    def gradient(config):
        def loss(params):
            return jnp.square(RoFormer(config).apply({"params": params}, audio)).sum()

        return jax.jit(jax.grad(loss))(params)

    kept = gradient(dataclasses.replace(model.config, remat="none"))
    for policy in ("block", "dots"):
        recomputed = gradient(dataclasses.replace(model.config, remat=policy))
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1e-3, float(abs(a).max())))


def test_bfloat16_stays_close_to_float32(windowed):
    _, model, params = windowed
    audio = music(np.random.default_rng(6), 1, 2, SAMPLES)
    expected = jax.jit(model.apply)({"params": params}, audio)
    half = RoFormer(dataclasses.replace(model.config, dtype="bfloat16"))
    output = jax.jit(half.apply)({"params": params}, audio)
    assert output.dtype == jnp.float32
    error = relative_error(output, expected)
    assert 1e-5 < error < 5e-2  # below: the dtype was not used at all


def test_one_block_without_sinks_sees_its_window_alone():
    """With one block of window 4, the features of frame t depend on the STFT frames t - 2 .. t + 2, by gradients."""
    config = tiny_config(
        depth=1, window=4, num_sinks=0, num_bands=4, stft_n_fft=512, stft_hop_length=500, stft_win_length=512
    )
    model = RoFormer(config)
    params = init_params(model, 0)
    audio = jnp.asarray(music(np.random.default_rng(7), 1, 2, 512 * 30))

    @jax.jit
    def sensitivity(audio):
        def middle(audio):
            return jnp.square(model.apply({"params": params}, audio, method="features")[0, 15]).sum()

        return abs(jax.grad(middle)(audio)).sum((0, 1))

    # Frame t reads samples 500 t - 256 .. 500 t + 255.
    seen = np.flatnonzero(sensitivity(audio))
    assert 500 * 13 - 256 <= seen.min() < 500 * 13
    assert 500 * 17 < seen.max() <= 500 * 17 + 255


def test_fresh_parameters_are_reproducible_and_named():
    model = RoFormer(tiny_config(num_bands=10, depth=1))
    params, again, other = init_params(model, 1), init_params(model, 1), init_params(model, 2)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, other))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))

    axes = jax.tree.leaves_with_path(logical_axes(model), is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    leaves = dict(jax.tree.leaves_with_path(params))
    assert len(axes) == len(leaves)
    for path, names in axes:
        assert len(names) == leaves[path].ndim, path
        assert None not in names, path

    mask = jax.tree.leaves_with_path(trainable_mask(params))
    frozen = {jax.tree_util.keystr(path) for path, trained in mask if not trained}
    assert frozen == {"['time_rotary']['freqs']", "['freq_rotary']['freqs']"}


def test_padding_of_fresh_parameters_is_zero_and_gets_no_gradient():
    config = tiny_config(num_bands=10, depth=1)
    model = RoFormer(config)
    params = init_params(model, 0)
    audio = jnp.asarray(music(np.random.default_rng(8), 1, 2, 8000))
    gradient = jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, audio)).sum()))(params)

    # Parameters rebuilt from the PyTorch layout have zeros where PyTorch has nothing.
    for tree in (params, gradient):
        tree = jax.tree.map(np.asarray, tree)
        rebuilt = from_state_dict(config, to_state_dict(config, tree))
        for part in ("band_split", "mask_estimator"):
            jax.tree.map(np.testing.assert_array_equal, tree[part], rebuilt[part])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 9000), "expected \\(batch, 2 channels"), ((1, 2, 100), "at least 1025")],
)
def test_audio_of_another_shape_is_refused(windowed, shape, message):
    _, model, params = windowed
    with pytest.raises(InputError, match=message):
        model.apply({"params": params}, jnp.zeros(shape))
    with pytest.raises(InputError, match=message):
        model.init(jax.random.key(0), jnp.zeros(shape))
