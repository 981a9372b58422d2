"""Benchmarks run too long for a test, but each must import what it uses and explain itself."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import of_a_program

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py"))
COMMANDS = [name for name in SCRIPTS if "argparse" in (BENCHMARKS / name).read_text()]


@pytest.fixture
def on_path(monkeypatch):
    """Puts benchmarks/ on the path, and removes its modules afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_can_be_imported(on_path, name):
    runpy.run_path(str(BENCHMARKS / name), run_name="imported")


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports_inside_functions_can_be_imported(on_path, name):
    for node in ast.walk(ast.parse((BENCHMARKS / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("wroformer_jax"):
            exec(ast.unparse(node), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_shows_its_help(name):
    command = [sys.executable, str(BENCHMARKS / name), "--help"]
    shown = subprocess.run(command, env=of_a_program(), capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{name}" in shown
