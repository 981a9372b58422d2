"""The training command, as it is typed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import of_a_program

from wroformer_jax.cli import app, recipes, train

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/quickstart.py"


@pytest.fixture
def typed(monkeypatch, capsys):
    """Runs train.py's command line in this process, in the clone; returns its exit status, stdout and stderr."""

    def run(*arguments):
        status = train.main([str(argument) for argument in arguments], program="train.py")
        return status, *capsys.readouterr()

    monkeypatch.chdir(ROOT)
    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([CONFIG], "--workdir"),
        (["--workdir=w", "--config=configs/quickstat.py"], "configs/quickstat.py: no such file"),
        (["--workdir=w", "--config=quickstat"], "unknown recipe 'quickstat', did you mean 'quickstart'?: --config "),
        (["--workdir=w", "--config", "nothing"], "one of finetune_wsa, long_context, quickstart, train_full"),
        (["--workdir=w", CONFIG, "--config.seconds=long"], "seconds is 'long', expected a number"),
        (["--workdir=w", "--config=configs"], "configs is a folder: --config takes a Python file or one of "),
        (["--workdir=w", "--config=LICENSE"], "invalid syntax (LICENSE, line 1)"),
        (["--workdir=w", "--config=tests/bad_configs/imports_what_is_not_there.py"], "No module named 'nowhere'"),
        (["--workdir=w", "--config=tests/bad_configs/no_config.py"], "get_config() gives int, expected a ConfigDict"),
        (["--workdir=w", CONFIG, "--config.model.num_bands=400"], "400 mel bands at 44100 Hz"),
        (["--workdir=w", CONFIG, "--config.stepz=4"], "unknown config field 'stepz', did you mean 'steps'?"),
        (["--workdir=w", CONFIG, "--config.model.dimm=4"], "unknown config field 'dimm', did you mean 'model.dim'?"),
        (["--workdir=w", CONFIG, "--config.steps=many"], "steps is 'many', expected a whole number"),
        (["--workdir=w", CONFIG, "--config.steps=-4"], "steps is -4, expected a whole number of at least 1"),
        (["--workdir=w", CONFIG, "--workdri=w"], "Unknown command line flag 'workdri'"),
        (["--workdir=w", CONFIG, "--coordinator=localhost:1"], "--num_processes is missing: --coordinator, "),
        (["--workdir=w", CONFIG, "steps=4"], "unexpected argument 'steps=4'"),
    ],
)
def test_mistakes_get_one_sentence(typed, tmp_path, arguments, sentence):
    status, _, error = typed(*(argument.replace("workdir=w", f"workdir={tmp_path / 'w'}") for argument in arguments))
    assert status == 2
    assert error.startswith("train.py: ")
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_verbose_shows_a_traceback(typed, tmp_path):
    status, _, error = typed(CONFIG, f"--workdir={tmp_path / 'w'}", "--config.steps=-4", "--verbose")
    assert status == 2
    assert error.startswith("Traceback (most recent call last)")


def test_a_recipe_is_named_or_a_path(tmp_path, monkeypatch):
    assert recipes.config_file("quickstart").name == "quickstart.py"
    assert recipes.config_file("configs/mine.py") == Path("configs/mine.py")
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipes.config_file("quickstart"), "mine")
    assert recipes.config_file("mine") == Path("mine")


def test_help_names_the_recipes_and_options(typed, capsys):
    with pytest.raises(SystemExit) as caught:
        app.main(["train", "--workdir", "w", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert typed("--workdir", "w", "--help") == (
        0,
        shown.replace("wroformer train --config NAME", "train.py --config NAME"),
        "",
    )
    for part in ("Recipes: finetune_wsa, long_context, quickstart, train_full", "--config.FIELD=VALUE", "--process_id"):
        assert part in shown


def test_the_subcommand_names_itself(capsys, tmp_path):
    assert app.main(["train", "--config", "quickstart", "--workdir", str(tmp_path), "--config.steps=-4"]) == 2
    assert capsys.readouterr().err == "wroformer train: steps is -4, expected a whole number of at least 1\n"


def test_options_may_have_the_former_names_of_fields(capsys, tmp_path):
    options = ["--config", "quickstart", "--workdir", str(tmp_path), "--config.loss_weights.l1=2", "--config.ema=1"]
    assert app.main(["train", *options]) == 2
    assert "optimizer.ema is 1.0, expected a number of at least 0 and below 1" in capsys.readouterr().err
    assert app.main(["train", *options[:4], "--config.model.blocks_a_save=0"]) == 2
    assert "blocks_per_save is 0, expected" in capsys.readouterr().err


# A model and a loss that compile quickly.
SHORT = [
    "--config.steps=2",
    "--config.batch_size=1",
    "--config.synthetic.train_songs=1",
    "--config.validation.songs=1",
    "--config.synthetic.song_seconds=1",
    "--config.loading.workers=0",
    "--config.loss.windows=(1024,)",
    "--config.model.band_scheme=band_split",
    "--config.model.freqs_per_bands=(171,171,171)",
    "--config.model.sample_rate=16000",
    "--config.model.dim=8",
]


def run_train(*arguments):
    command = [sys.executable, "train.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=of_a_program(), capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_from_the_first_line_to_the_last_and_what_a_resumed_one_refuses(typed, tmp_path):
    workdir = tmp_path / "run"
    result = run_train(CONFIG, f"--workdir={workdir}", *SHORT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)"
    assert result.stderr == ""
    config = json.loads((workdir / "config.json").read_text())
    assert (config["steps"], config["synthetic"]["song_seconds"], config["model"]["num_sinks"]) == (2, 1.0, 8)
    assert (workdir / "checkpoints" / "2").is_dir()

    status, _, error = typed(CONFIG, f"--workdir={workdir}", *SHORT, "--config.model.dim=32")
    assert status == 2
    assert error.startswith(f"train.py: {workdir} holds a run with model.dim = 8, not 32: ")
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_short_quickstart(tmp_path):
    result = run_train("--config=quickstart", f"--workdir={tmp_path / 'run'}", *SHORT[:5])
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
