"""Training checkpoints: saved steps are restored, damaged ones are skipped, and a kill costs no earlier step."""

import dataclasses
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import optax
import orbax.checkpoint as ocp
import pytest
from support.helpers import of_a_program
from support.tiny_model import CONFIG, FULL, assert_same, fail_halfway, files_in, largest_file, make_params

from wroformer_jax.checkpoints.model_dir import load_model
from wroformer_jax.errors import InputError
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints


@pytest.fixture(scope="module")
def params():
    return make_params()


def training_state(params, step):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {"opt": optimizer.init(params), "key": jax.random.key(step), "epoch": step, "name": "run"}


def save_steps(workdir, params, steps, **options):
    with TrainingCheckpoints(workdir, CONFIG, **options) as checkpoints:
        for step in steps:
            checkpoints.save(
                step, jax.tree.map(lambda leaf, step=step: leaf + step, params), training_state(params, step)
            )


def truncate_step(workdir, step, item="params"):
    largest = largest_file(workdir / "checkpoints" / str(step) / item)
    os.truncate(largest, largest.stat().st_size // 2)


def test_nothing_saved_yet(tmp_path, params):
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(params, training_state(params, 0)) is None
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        load_model(tmp_path)


def test_training_round_trip(tmp_path, params):
    save_steps(tmp_path, params, [10, 20])
    like = jax.eval_shape(lambda: params)
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        step, restored, training = checkpoints.restore(like, training_state(params, 0))
    assert step == 20
    assert_same(jax.tree.map(lambda leaf: leaf + 20, params), restored)
    want = training_state(params, 20)
    assert jax.random.key_data(training.pop("key")).tolist() == jax.random.key_data(want.pop("key")).tolist()
    assert (training.pop("epoch"), training.pop("name")) == (want.pop("epoch"), want.pop("name"))
    assert_same(want, training)
    config, loaded, layout = load_model(tmp_path)
    assert (config, layout) == (CONFIG, None)
    assert_same(restored, loaded)


def test_oldest_steps_go(tmp_path, params):
    save_steps(tmp_path, params, [1, 2, 3, 4], max_to_keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "4"]


@pytest.mark.parametrize("item", ["params", "training"])
def test_a_damaged_newest_step_is_skipped(tmp_path, params, caplog, item):
    save_steps(tmp_path, params, [10, 20, 30], max_to_keep=1)
    save_steps(tmp_path, params, [40], max_to_keep=None)
    truncate_step(tmp_path, 40, item)
    with TrainingCheckpoints(tmp_path, CONFIG, max_to_keep=1) as checkpoints:
        step, restored, _ = checkpoints.restore(params, training_state(params, 0))
        assert step == 30
        assert_same(jax.tree.map(lambda leaf: leaf + 30, params), restored)
        assert "40 is damaged, skipped and renamed to 40.damaged" in caplog.text
        # When training reaches that step again, the damaged one neither blocks it nor counts as a step.
        checkpoints.save(35, params, training_state(params, 35))
        assert checkpoints.steps() == [35]
        checkpoints.save(40, params, training_state(params, 40))
        assert checkpoints.restore(params, training_state(params, 0))[0] == 40


def test_loading_a_workdir_skips_damage_and_changes_nothing(tmp_path, params, caplog):
    save_steps(tmp_path, params, [10, 20])
    truncate_step(tmp_path, 20)
    before = files_in(tmp_path)
    assert_same(jax.tree.map(lambda leaf: leaf + 10, params), load_model(tmp_path)[1])
    assert "20 is damaged and passed over" in caplog.text
    assert files_in(tmp_path) == before


def test_all_steps_damaged(tmp_path, params):
    save_steps(tmp_path, params, [10, 20])
    for step in (10, 20):
        truncate_step(tmp_path, step)
    with (
        TrainingCheckpoints(tmp_path, CONFIG) as checkpoints,
        pytest.raises(InputError, match=r"none of the 2 checkpoints in \S+ can be read"),
    ):
        checkpoints.restore(params, training_state(params, 0))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "20"]  # nothing is deleted
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        load_model(tmp_path)


def test_another_model_in_the_workdir(tmp_path, params):
    save_steps(tmp_path, params, [1])
    with pytest.raises(InputError, match="holds the training of another model: its dim_mask is 32, not 64"):
        TrainingCheckpoints(tmp_path, dataclasses.replace(CONFIG, dim_mask=64))
    TrainingCheckpoints(tmp_path, dataclasses.replace(CONFIG, dtype="bfloat16", remat="none")).close()


def test_another_optimiser(tmp_path, params):
    save_steps(tmp_path, params, [1])
    sgd = {**training_state(params, 0), "opt": optax.sgd(1e-3, momentum=0.9).init(params)}
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints, pytest.raises(InputError, match="training: opt/"):
        checkpoints.restore(params, sgd)


def test_saving_a_step_twice(tmp_path, params):
    save_steps(tmp_path, params, [1])
    before = files_in(tmp_path)
    save_steps(tmp_path, make_params(seed=1), [1])
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("late", [False, True])
def test_a_disk_that_fills_up_while_saving_ends_no_training(tmp_path, params, monkeypatch, caplog, error, late):
    save_steps(tmp_path, params, [1])
    before = files_in(tmp_path)
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        if late:  # after `save` has returned
            monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", fail_halfway(error))
        else:
            monkeypatch.setattr(ocp.AsyncCheckpointer, "save", fail_halfway(error))
        checkpoints.save(2, params, training_state(params, 2))
        with pytest.raises(InputError, match=r"the last state could not be saved: cannot write \S+2: the disk is full"):
            checkpoints.finish()
        assert "checkpoint 2 could not be saved, the next save will try again: cannot write" in caplog.text
        assert files_in(tmp_path) == before
        monkeypatch.undo()
        checkpoints.save(3, params, training_state(params, 3))
        checkpoints.finish()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "3"]
    assert_same(params, load_model(tmp_path)[1])


def test_a_disk_without_room_is_noticed_before_saving(tmp_path, params, monkeypatch, caplog):
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        checkpoints.save(1, params, training_state(params, 1))
        assert os.listdir(tmp_path / "checkpoints") == []
        assert "the disk is full" in caplog.text
        with pytest.raises(InputError, match="the last state could not be saved"):
            checkpoints.finish()


def test_a_workdir_that_is_gone_is_not_called_a_full_disk(tmp_path, params, caplog):
    with TrainingCheckpoints(tmp_path / "run", CONFIG) as checkpoints:
        shutil.rmtree(tmp_path / "run")
        checkpoints.save(1, params, training_state(params, 1))
        with pytest.raises(
            InputError, match=r"could not be saved: cannot write \S+/run/checkpoints: No such file or directory$"
        ):
            checkpoints.finish()


def test_an_unreachable_directory_ends_no_training_either(tmp_path, params, caplog):
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.directory.rmdir()
        checkpoints.directory.write_text("")  # as if it were no longer mounted
        checkpoints.save(1, params, training_state(params, 1))
        assert "checkpoint 1 could not be saved" in caplog.text
        checkpoints.directory.unlink()
        checkpoints.directory.mkdir()
        checkpoints.save(2, params, training_state(params, 2))
        checkpoints.finish()
        assert checkpoints.steps() == [2]


def test_arrays_that_are_donated_after_saving_are_saved_as_they_were(tmp_path, params):
    donated = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = jax.tree.map(jax.numpy.array, params)
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, state, {"n": 1})
        for _ in range(3):
            state = donated(state)
        checkpoints.finish()
    assert_same(params, load_model(tmp_path)[1])


def test_the_best_step_stays(tmp_path, params):
    def save(steps, scores):
        with TrainingCheckpoints(tmp_path, CONFIG, max_to_keep=1) as checkpoints:
            for step, score in zip(steps, scores, strict=True):
                checkpoints.save(step, params, {"n": step}, score=score)
        return sorted(map(int, os.listdir(tmp_path / "checkpoints")))

    assert save([1, 2, 3], [1.0, 3.0, 2.0]) == [2, 3]
    assert save([4, 5], [None, float("nan")]) == [2, 5]  # a new process reads the scores from disk
    assert save([6, 7], [4.0, 3.5]) == [6, 7]
    (tmp_path / "checkpoints" / "6" / "score" / "metadata").write_text("{garbled")
    assert save([8], [1.0]) == [7, 8]
    assert_same(params, load_model(tmp_path)[1])


def test_damaged_metadata_of_orbax_is_neither_needed_nor_mentioned(tmp_path, params, caplog):
    save_steps(tmp_path, params, [1, 2])
    for step in ("1", "2"):
        (tmp_path / "checkpoints" / step / "_CHECKPOINT_METADATA").write_text("{garbled")
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(params, training_state(params, 0))[0] == 2
        checkpoints.save(3, params, training_state(params, 3))
    assert caplog.records == []


def test_path_in_which_orbax_loses_weights(tmp_path):
    with pytest.raises(InputError, match=r"run \[1\]: choose a place without \*, \? and \["):
        TrainingCheckpoints(tmp_path / "run [1]", CONFIG)
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
import orbax.checkpoint as ocp
from support.tiny_model import CONFIG, make_params
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

params, checkpoints = make_params(), TrainingCheckpoints(sys.argv[1], CONFIG)
checkpoints.save(1, params, {"n": 1})
checkpoints.finish()
ocp.PyTreeCheckpointHandler.finalize = die
checkpoints.save(2, params, {"n": 2})
checkpoints.finish()
"""


@pytest.mark.slow
def test_killed_while_saving(tmp_path, params):
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=of_a_program(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == -9, result.stderr
    assert [name for name in os.listdir(tmp_path / "checkpoints") if name != "1"], "it was killed too early"
    assert_same(params, load_model(tmp_path)[1])
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        step, restored, training = checkpoints.restore(params, {"n": 0})
        assert (step, training) == (1, {"n": 1})
        assert_same(params, restored)
        checkpoints.save(2, params, {"n": 2})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]
