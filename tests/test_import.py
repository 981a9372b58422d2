"""What an import costs: nothing heavy until something needs it. Each check runs in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import wroformer_jax

NUMERIC = {"numpy", "jax", "flax"}
HEAVY = {"torch", "librosa", "matplotlib", "orbax", "soundfile", "tensorflow_datasets", "huggingface_hub"}


def loaded_after(code):
    """Which of these packages are loaded once the code has run."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return (NUMERIC | HEAVY | {"scipy.signal"}) & set(json.loads(process.stderr.splitlines()[-1]))


def test_the_import_loads_nothing_heavy():
    assert loaded_after("import wroformer_jax") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["separate", "--help"],
        ["evaluate", "--help"],
        ["prepare", "--help"],
        ["inspect", "--help"],
        ["plan", "--help"],
        ["train", "--help"],
        ["convert", "--help"],
        ["convert", "to-jax", "--help"],
        ["--version"],
        ["models"],
    ],
)
def test_what_the_command_says_of_itself_loads_nothing_heavy(arguments):
    code = f"import contextlib, wroformer_jax.cli as cli\nwith contextlib.suppress(SystemExit): cli.main({arguments})"
    assert loaded_after(code) == set()


def test_the_model_needs_flax_alone():
    code = "from wroformer_jax.model.params import num_parameters\nfrom wroformer_jax.config import ModelConfig\n"
    assert loaded_after(code + "num_parameters(ModelConfig())") & (HEAVY | {"scipy.signal"}) == set()


def test_every_public_name_is_there():
    assert len(wroformer_jax.__all__) <= 12
    for name in wroformer_jax.__all__:
        assert getattr(wroformer_jax, name) is not None


def test_the_readme_has_no_gaps():
    assert "@@" not in (Path(__file__).parents[1] / "README.md").read_text()
