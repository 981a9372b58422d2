"""Recorded numbers of the PyTorch models, if the folder with them is there: they prove support/reference.py right.

A clone without the folder skips this file. Then model/test_roformer.py covers everything in it: it computes the same
numbers with PyTorch as it runs.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from bs_roformer import BSRoformer, MelBandRoformer
from support.helpers import relative_error
from support.reference import patch
from support.tiny_training import fields_of

from wroformer_jax.checkpoints.torch_files import load_torch
from wroformer_jax.checkpoints.torch_weights import to_state_dict
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.attention import windowed_sink_attention
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.model.stft import stft, stft_sizes
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.training.losses import l1, multi_resolution_stft_loss
from wroformer_jax.training.step import loss_and_gradients

GOLDEN = Path(os.environ.get("WROFORMER_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
CASES = ("wsa", "full", "two_stems", "bs")
BOUND = 5e-5  # of a stage's largest absolute value

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the folder of recorded numbers is missing")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(name, config, params, recorded stages) of one recorded case."""
    folder = GOLDEN / request.param
    config, params, _ = load_torch(folder / "model.ckpt", folder / "model.yaml")
    with np.load(folder / "stages.npz") as stages:
        return request.param, config, jax.tree.map(jnp.asarray, params), dict(stages)


def our_stages(config, params, mixture):
    model, variables = RoFormer(config), {"params": params}

    @jax.jit
    def run(variables, mixture):
        real, imag = model.apply(variables, mixture, method="masks")
        return {
            "band_split": model.apply(variables, mixture, method="band_features"),
            "features": model.apply(variables, mixture, method="features"),
            "mask": (real + 1j * imag).swapaxes(-1, -2),
            "output": model.apply(variables, mixture),
        }

    one_block = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    shallow = RoFormer(dataclasses.replace(config, depth=1))
    block0 = jax.jit(lambda v, x: shallow.apply(v, x, method="features", keep_sinks=True))
    stages = run(variables, mixture)
    if config.band_scheme == "mel":  # elsewhere the final norm stands between the block and what `features` gives
        stages["block0"] = block0({"params": one_block}, mixture)
    return stages


def test_every_stage(case):
    name, config, params, recorded = case
    ours = our_stages(config, params, recorded["mixture"])
    errors = {stage: relative_error(ours[stage], recorded[stage]) for stage in ours if stage in recorded}
    assert {"mask", "output"} <= set(errors)
    print(name, {stage: f"{error:.1e}" for stage, error in errors.items()})
    assert max(errors.values()) < BOUND


def test_the_spectrum(case):
    _, config, _, recorded = case
    if "stft" not in recorded:
        assert case[0] in ("two_stems", "bs")
        return
    real, imag = stft(recorded["mixture"], **stft_sizes(config))
    error = relative_error((real + 1j * imag).swapaxes(-1, -2), recorded["stft"])
    print(case[0], f"stft: {error:.1e}")
    assert error < BOUND


def test_the_live_reference(case):
    name, config, _, recorded = case
    state = torch.load(GOLDEN / name / "model.ckpt", weights_only=True)
    mel = config.band_scheme == "mel"
    model = (MelBandRoformer if mel else BSRoformer)(
        dim=config.dim,
        depth=config.depth,
        stereo=True,
        num_stems=config.num_stems,
        time_transformer_depth=1,
        freq_transformer_depth=1,
        dim_head=config.dim_head,
        heads=config.heads,
        attn_dropout=0.0,
        flash_attn=False,
        stft_hop_length=441,
        mask_estimator_depth=config.mask_layers - 1 if mel else config.mask_layers,
    )
    if config.num_sinks:
        model.sink_tokens = torch.nn.Parameter(torch.zeros_like(state["sink_tokens"]))
    model.load_state_dict(state)
    live = patch(model.eval(), config).stages(torch.tensor(recorded["mixture"]))
    for stage, value in recorded.items():
        if stage in live:
            assert relative_error(live[stage], value) < BOUND, stage


def test_the_state_dict_survives(case):
    name, config, params, _ = case
    original = torch.load(GOLDEN / name / "model.ckpt", weights_only=True)
    _, _, layout = load_torch(GOLDEN / name / "model.ckpt", GOLDEN / name / "model.yaml")
    again = to_state_dict(config, jax.tree.map(np.asarray, params), layout)
    assert list(again) == list(original)
    for key, tensor in original.items():
        assert again[key].shape == tuple(tensor.shape)
        assert again[key].tobytes() == tensor.numpy().tobytes(), key


def test_the_loss(case):
    name, _, _, recorded = case
    if not (GOLDEN / name / "loss.json").exists():
        assert name == "wsa"
        return
    expected = json.loads((GOLDEN / name / "loss.json").read_text())["total"]
    output = jnp.asarray(recorded["output"])
    target = 0.5 * jnp.asarray(recorded["mixture"])[:, None, :, : output.shape[-1]]
    target = jnp.broadcast_to(target, output.shape)
    assert float(l1(output, target) + multi_resolution_stft_loss(output, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", "abcdef")
def test_attention(name):
    with np.load(GOLDEN / "attention.npz") as recorded:
        q, k, v, expected = (jnp.asarray(recorded[f"{name}/{x}"]).swapaxes(1, 2) for x in "qkvo")
        window, sinks = map(int, recorded[f"{name}/window_sinks"])
    out = windowed_sink_attention(q, k, v, window=window, num_sinks=sinks)
    np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0)


def test_the_loss_of_the_training_step(case):
    name, config, params, recorded = case
    if not (GOLDEN / name / "loss.json").exists():
        assert name == "wsa"
        return
    expected = json.loads((GOLDEN / name / "loss.json").read_text())["total"]
    mixture = jnp.asarray(recorded["mixture"])
    fields = {**fields_of("finetune_wsa"), "model": config.to_dict(), "init": "", "teacher": ""}
    fields["loss"]["weights"]["masks"] = 0.0
    training = TrainingConfig.from_dict(fields)
    samples = recorded["output"].shape[-1]
    targets = jnp.broadcast_to(0.5 * mixture[:, None, :, :samples], recorded["output"].shape)
    mesh = make_mesh(training.mesh)
    loss_of = jax.jit(lambda *arguments: loss_and_gradients(training, mesh)(*arguments)[0])
    loss, _ = loss_of(params, {"mixture": mixture, "targets": targets}, None)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
