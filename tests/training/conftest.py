"""The run that others are compared with."""

import jax
import numpy as np
import pytest
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints.model_dir import load_model
from wroformer_jax.training.trainer import train


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The workdir of a run that nothing interrupted, and its scores."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(tiny_run(), workdir)


@pytest.fixture
def assert_ended_alike(whole):
    """A function that checks that a run ended as the one that nothing interrupted: the same weights and records."""

    def check(workdir):
        params, others = load_model(workdir)[1], load_model(whole[0])[1]
        assert jax.tree.structure(params) == jax.tree.structure(others)
        jax.tree.map(np.testing.assert_array_equal, params, others)
        assert (workdir / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()

    return check
