"""For tests that compile for TPUs, which are not needed for it: libtpu is."""

import importlib.util
import os

import pytest

from wroformer_jax.planning import topology as module

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs on a CPU, is not installed"
)


@pytest.fixture
def libtpu_environment(monkeypatch):
    """Restores after the test the variables that tell libtpu for what to compile."""
    for variable in module._ENVIRONMENT:
        monkeypatch.setenv(variable, os.environ.get(variable, module._ENVIRONMENT[variable]))
