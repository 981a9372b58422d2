"""Runs whose workdir is in a bucket, against a server on this machine that speaks as Google's does."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from fake_bucket import fake_storage
from tiny_training import tiny_run

import wroformer_jax
from wroformer_jax import trainer
from wroformer_jax.checkpoint import load_model
from wroformer_jax.errors import InputError

pytest.importorskip("gcsfs")

RUN = "gs://bucket/some runs/a"


def tiny(**fields):
    return tiny_run(steps=8, validate_every=4, keep_checkpoints=2, max_skipped=3, **fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A local run that nothing interrupted, and its scores."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, trainer.train(tiny(), workdir)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache"))
    with fake_storage(monkeypatch, "bucket") as server:
        yield server


def files_of(bucket):
    return {name.removeprefix("some runs/a/"): content for (_, name), content in bucket.objects.items()}


def assert_ended_like(whole, bucket):
    assert files_of(bucket)["metrics.jsonl"] == (whole[0] / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, load_model(RUN)[1], load_model(whole[0])[1])


def test_end_to_end(whole, bucket):
    assert trainer.train(tiny(), RUN) == whole[1]
    assert_ended_like(whole, bucket)
