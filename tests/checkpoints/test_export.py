"""From PyTorch through fine-tuning and back: the public package separates alike with the exported weights."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from support.helpers import music
from support.reference import make_reference
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints import loading
from wroformer_jax.checkpoints.torch_weights import from_state_dict
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.training.trainer import train

# The package fixes the hidden widths at four times the model's dim.
MODEL = {"depth": 2, "heads": 2, "dim_feed_forward": 32, "dim_mask": 32}


@pytest.mark.slow
def test_fine_tuned_weights_separate_alike_in_pytorch(tmp_path):
    checkpoint = tmp_path / "full.ckpt"
    student = tiny_run(model=MODEL).model
    full = dataclasses.replace(student, time_mixer="full", num_sinks=0)
    start = from_state_dict(full, make_reference(full).state_dict())
    loading.save(checkpoint, RoFormer(full), start)

    config = tiny_run(
        model=MODEL,
        init=str(checkpoint),
        teacher=str(checkpoint),
        loss={"weights": {"masks": 1.0}},
        optimizer={"ema": 0.9},
    )
    train(config, tmp_path / "run")
    model, params = loading.load(tmp_path / "run")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start["blocks"], jax.device_get(params["blocks"]))
    assert max(jax.tree.leaves(moved)) > 1e-4

    loading.save(tmp_path / "back.ckpt", model, params)
    theirs = make_reference(student, seed=1)
    theirs.load_state_dict(torch.load(tmp_path / "back.ckpt", weights_only=True), strict=True)
    audio = music(np.random.default_rng(0), 2, 2, 16000)
    ours = jax.jit(model.apply)({"params": params}, audio)
    assert float(np.abs(ours).max()) > 1e-2
    np.testing.assert_allclose(ours, theirs.stages(torch.from_numpy(audio))["output"], atol=2e-4, rtol=0)
