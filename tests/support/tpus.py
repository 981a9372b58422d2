"""For tests that compile for TPUs. No TPU is needed, but libtpu is."""

import importlib.util
import os

import pytest

from wroformer_jax.planning.topology import LIBTPU_ENVIRONMENT


def needs_libtpu(test):
    """Marks a test with `needs_libtpu`, and skips it where libtpu is not installed."""
    is_missing = importlib.util.find_spec("libtpu") is None
    skip = pytest.mark.skipif(is_missing, reason="libtpu, which compiles for TPUs on a CPU, is not installed")
    return pytest.mark.needs_libtpu(skip(test))


@pytest.fixture
def libtpu_environment(monkeypatch):
    """Restores after the test the variables that tell libtpu for what to compile."""
    for variable, value in LIBTPU_ENVIRONMENT.items():
        monkeypatch.setenv(variable, os.environ.get(variable, value))
