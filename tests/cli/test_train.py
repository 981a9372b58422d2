"""The training command, as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(*arguments):
    command = [sys.executable, "train.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


CONFIG = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([CONFIG], "--workdir"),
        (["--workdir=w", "--config=configs/quickstat.py"], "configs/quickstat.py: no such file"),
        (["--workdir=w", "--config=LICENSE"], "invalid syntax (LICENSE, line 1)"),
        (["--workdir=w", "--config=tests/bad_configs/imports_what_is_not_there.py"], "No module named 'nowhere'"),
        (["--workdir=w", "--config=tests/bad_configs/no_config.py"], "get_config() gives int, expected a ConfigDict"),
        (["--workdir=w", CONFIG, "--config.model.num_bands=400"], "400 mel bands at 44100 Hz"),
        (["--workdir=w", CONFIG, "--config.stepz=4"], "unknown config field 'stepz', did you mean 'steps'?"),
        (["--workdir=w", CONFIG, "--config.model.dimm=4"], "unknown config field 'dimm', did you mean 'model.dim'?"),
        (["--workdir=w", CONFIG, "--config.steps=many"], "--config.steps=many: invalid literal"),
        (["--workdir=w", CONFIG, "--config.steps=-4"], "steps is -4, expected a whole number of at least 1"),
        (["--workdir=w", CONFIG, "--workdri=w"], "Unknown command line flag 'workdri'"),
        (["--workdir=w", CONFIG, "--coordinator=localhost:1"], "--num_processes is missing: --coordinator, "),
        (["--workdir=w", CONFIG, "steps=4"], "unexpected argument 'steps=4'"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, arguments, sentence):
    here = [argument.replace("workdir=w", f"workdir={tmp_path / 'w'}") for argument in arguments]
    result = train(*here)
    assert result.returncode == 2
    assert result.stderr.startswith("train.py: ")
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_short_quickstart_and_what_a_resumed_one_refuses(tmp_path):
    workdir = tmp_path / "run"
    short = [
        CONFIG,
        f"--workdir={workdir}",
        "--config.steps=2",
        "--config.batch_size=1",
        "--config.synthetic.train_songs=1",
        "--config.validation.songs=1",
        "--config.synthetic.song_seconds=2",
    ]
    result = train(*short)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)"
    assert result.stderr == ""
    config = json.loads((workdir / "config.json").read_text())
    assert (config["steps"], config["synthetic"]["song_seconds"], config["model"]["num_sinks"]) == (2, 2.0, 8)
    assert (workdir / "checkpoints" / "2").is_dir()

    result = train(*short, "--config.model.dim=32")
    assert result.returncode == 2
    assert result.stderr.startswith(f"train.py: {workdir} holds a run with model.dim = 64, not 32")
    assert len(result.stderr.splitlines()) == 1
