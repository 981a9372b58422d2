"""A run that is interrupted and continues ends as one that nothing interrupted: the same weights, the same records."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import of_a_program
from support.tiny_training import tiny_run, train_on

from wroformer_jax.data.loading import Batches
from wroformer_jax.errors import InputError
from wroformer_jax.training import validation
from wroformer_jax.training.loop import PreemptedError
from wroformer_jax.training.trainer import train

PROGRAM = Path(__file__).parents[1] / "support" / "one_of_several.py"


def crash_at(step):
    def change(batch, number):
        if number == step:
            raise MemoryError
        return batch

    return change


def notice_at(step):
    """The notice of preemption comes while a step is under way."""

    def change(batch, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    return change


def test_same_seed_same_numbers(tmp_path, assert_ended_alike):
    train(tiny_run(), tmp_path)
    assert_ended_alike(tmp_path)


@pytest.mark.parametrize(
    ("crash", "begins"), [(6, "going on from step 4"), pytest.param(2, "starting", marks=pytest.mark.slow)]
)
def test_resumes_exactly_after_a_crash(tmp_path, assert_ended_alike, capsys, crash, begins):
    with pytest.raises(MemoryError):
        train_on(crash_at(crash), tiny_run(), tmp_path)
    capsys.readouterr()
    train(tiny_run(), tmp_path)
    assert capsys.readouterr().out.startswith(begins)
    assert_ended_alike(tmp_path)


@pytest.mark.slow
def test_killed_and_restarted_it_ends_with_the_same_weights(tmp_path, assert_ended_alike):
    settings = {"config": tiny_run().to_dict(), "workdir": str(tmp_path), "sigkill": 6}
    command = [sys.executable, str(PROGRAM), json.dumps(settings)]
    killed = subprocess.run(command, env=of_a_program(), capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "checkpoints" / "2").is_dir()  # that of step 4 may have been under way
    train(tiny_run(), tmp_path)
    assert_ended_alike(tmp_path)


# Where a validation is due, and between two logs.
@pytest.mark.parametrize("step", [4, pytest.param(3, marks=pytest.mark.slow)])
def test_a_notice_of_preemption_saves_the_step_under_way(tmp_path, assert_ended_alike, capsys, step):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match=f"step {step} of 8 is saved in {tmp_path}"):
        train_on(notice_at(step), tiny_run(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    capsys.readouterr()
    train(tiny_run(), tmp_path)
    assert capsys.readouterr().out.startswith(f"going on from step {step}")
    assert_ended_alike(tmp_path)


def test_a_notice_during_a_validation_saves_the_step_at_once(whole, tmp_path, assert_ended_alike, monkeypatch):
    score, numbers = validation.separate_and_score, itertools.count(1)

    def notice(*args, **kwargs):
        if (number := next(numbers)) == 3:  # the first of the two songs after step 4
            os.kill(os.getpid(), signal.SIGTERM)
        assert number < 4
        return score(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "separate_and_score", notice)
        with pytest.raises(PreemptedError, match="step 4 of 8 is saved"):
            train(tiny_run(), tmp_path)
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert train(tiny_run(), tmp_path) == whole[1]
    assert_ended_alike(tmp_path)


def test_workers_that_got_the_notice_too_are_no_obstacle(tmp_path, monkeypatch):
    give, numbers = Batches.__next__, itertools.count(1)

    def die_once(loader):
        if next(numbers) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            raise InputError("a worker that loads batches has died")
        return give(loader)

    monkeypatch.setattr(Batches, "__next__", die_once)
    with pytest.raises(PreemptedError, match="step 3 of 8 is saved"):
        train(tiny_run(), tmp_path)


def test_a_run_that_continues_reads_no_init(whole, tmp_path):
    """The checkpoint that it started from may be gone by then."""
    gone = tiny_run(init=str(tmp_path / "gone"))
    copy = shutil.copytree(whole[0], tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps(gone.to_dict()))
    assert train(gone, copy) == whole[1]
    with pytest.raises(InputError, match=r"init: .*gone"):
        train(gone, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_whose_settings_have_former_names_continues(whole, tmp_path):
    copy = shutil.copytree(whole[0], tmp_path / "copy")
    fields = tiny_run().to_dict()
    former = {"learning_rate": fields["optimizer"].pop("learning_rate"), "log_every": fields.pop("logging")["every"]}
    (copy / "config.json").write_text(json.dumps(fields | former))
    assert train(tiny_run(), copy) == whole[1]
    with pytest.raises(InputError, match=r"optimizer.learning_rate = 0.003, not 0.1"):
        train(tiny_run(optimizer={"learning_rate": 0.1}), copy)


def test_saves_that_fail_end_the_run_only_at_its_end(tmp_path, assert_ended_alike, monkeypatch, caplog):
    usage = shutil.disk_usage

    def full(path):
        return usage(path)._replace(free=0) if Path(path).name == "checkpoints" else usage(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", full)
        with pytest.raises(InputError, match=r"the last state could not be saved: .*the disk is full"):
            train(tiny_run(), tmp_path)
    assert [f"checkpoint {step} could not be saved" in caplog.text for step in (2, 4, 6, 8)] == [True] * 4
    train(tiny_run(), tmp_path)
    assert_ended_alike(tmp_path)
