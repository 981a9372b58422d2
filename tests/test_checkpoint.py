"""Model directories and training checkpoints: what is written comes back, and nothing half-written stays."""

import collections
import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tiny_model import CONFIG, assert_same, make_params

from wroformer_jax import checkpoint
from wroformer_jax.checkpoint import TrainingCheckpoints, load_model, save_model
from wroformer_jax.errors import InputError
from wroformer_jax.torch_bridge import TorchLayout


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture
def model_dir(tmp_path, params):
    save_model(tmp_path / "model", CONFIG, params)
    return tmp_path / "model"


def files_in(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# Model directories


def test_round_trip_is_bit_identical(tmp_path, params):
    layout = TorchLayout((("b.weight", "float16"), ("a.weight", "float32")))
    save_model(tmp_path / "new" / "model", CONFIG, params, torch_layout=layout)
    config, loaded, loaded_layout = load_model(tmp_path / "new" / "model")
    assert config == CONFIG
    assert loaded_layout == layout
    assert_same(params, loaded)
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))


def test_saved_directory_holds_nothing_else(model_dir):
    assert sorted(os.listdir(model_dir)) == ["model.json", "params"]
    assert os.listdir(model_dir.parent) == ["model"]
    assert model_dir.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_existing_directory_is_refused(model_dir, params):
    before = files_in(model_dir)
    with pytest.raises(InputError, match=r"model exists already"):
        save_model(model_dir, CONFIG, params)
    assert files_in(model_dir) == before


def test_overwrite_replaces(model_dir):
    other = make_params(seed=1)
    save_model(model_dir, CONFIG, other, overwrite=True)
    assert_same(other, load_model(model_dir)[1])
    assert os.listdir(model_dir.parent) == ["model"]


@pytest.mark.parametrize("kind", ["somebody's files", "workdir", "file"])
def test_overwrite_spares_what_is_no_model_directory(tmp_path, params, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("notes")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("notes")
    if kind == "workdir":
        TrainingCheckpoints(path, CONFIG).close()
    with pytest.raises(InputError, match="precious is not a model directory, so it is not overwritten"):
        save_model(path, CONFIG, params, overwrite=True)
    assert (path if kind == "file" else path / "notes.txt").read_text() == "notes"


def test_params_of_another_model_are_not_saved(tmp_path, params):
    with pytest.raises(InputError, match="blocks/"):
        save_model(tmp_path / "model", dataclasses.replace(CONFIG, dim_feed_forward=64), params)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.clear(), "no 'model' section"),
        (lambda fields: fields.update(model=[1]), "no 'model' section"),
        (lambda fields: fields.update(format=2), "has format 2, this version reads 1"),
        (lambda fields: fields.pop("format"), "has format None"),
        (lambda fields: fields.update(extra=1), "unknown field 'extra'"),
        (lambda fields: fields["model"].update(dims=3), "unknown model field 'dims', did you mean 'dim'"),
        (lambda fields: fields["model"].update(depth=0), "depth is 0, expected"),
        (lambda fields: fields.update(torch=[1]), "'torch' section is damaged"),
        (lambda fields: fields.update(torch={"a": "int3"}), "unknown dtype 'int3'"),
    ],
)
def test_bad_model_json(model_dir, edit, message):
    fields = json.loads((model_dir / "model.json").read_text())
    edit(fields)
    (model_dir / "model.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message) as caught:
        load_model(model_dir)
    assert str(model_dir / "model.json") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "mod', b"\x80\xff"])
def test_model_json_that_is_not_json(model_dir, content):
    (model_dir / "model.json").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.json is damaged: it is not JSON"):
        load_model(model_dir)


def test_not_a_model_directory(tmp_path):
    with pytest.raises(InputError, match=r"has no model\.json"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a directory"):
        load_model(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim_mask": 48}, r"mask_estimator/\S+ is float32\[\S+\], but these settings need float32\["),
        ({"num_sinks": 0}, "sink_tokens is unknown"),
        ({"mask_layers": 3}, "mask_estimator/hidden_1/bias is missing"),
    ],
)
def test_settings_of_another_model(model_dir, change, message):
    fields = json.loads((model_dir / "model.json").read_text())
    fields["model"].update(change)
    (model_dir / "model.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message):
        load_model(model_dir)


@pytest.mark.parametrize("damage", ["cut short", "emptied", "removed", "no metadata", "no params"])
def test_damaged_params(model_dir, damage):
    largest = largest_file(model_dir / "params")
    if damage == "cut short":
        os.truncate(largest, largest.stat().st_size // 2)
    elif damage == "emptied":
        os.truncate(largest, 0)
    elif damage == "removed":
        largest.unlink()
    elif damage == "no metadata":
        (model_dir / "params" / "_METADATA").unlink()
    else:
        shutil.rmtree(model_dir / "params")
    with pytest.raises(InputError, match=r"params is damaged or incomplete|holds no whole checkpoint") as caught:
        load_model(model_dir)
    assert "\n" not in str(caught.value)


Usage = collections.namedtuple("Usage", "total used free")


def fail_halfway(error):
    """Orbax's save, except that it writes a part and then fails."""

    def save(self, directory, *_, **__):
        partial = directory.with_name(directory.name + ".orbax-checkpoint-tmp")
        partial.mkdir(parents=True)
        (partial / "part").write_bytes(b"half")
        raise error

    return save


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"),
]


@pytest.mark.parametrize("error", FULL)
def test_disk_fills_up_while_saving(model_dir, params, monkeypatch, error):
    before = files_in(model_dir)
    monkeypatch.setattr(ocp.Checkpointer, "save", fail_halfway(error))
    for path, overwrite in ((model_dir, True), (model_dir.with_name("new"), False)):
        with pytest.raises(InputError, match=rf"cannot write {path}: the disk is full"):
            save_model(path, CONFIG, params, overwrite=overwrite)
    assert os.listdir(model_dir.parent) == ["model"]
    assert files_in(model_dir) == before


def test_full_disk_is_found_first(tmp_path, params, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(InputError, match=r"the disk is full \(\d.* MB are needed, 0.0 MB are free\)"):
        save_model(tmp_path / "model", CONFIG, params)
    assert os.listdir(tmp_path) == []


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path, params, monkeypatch):
    monkeypatch.setattr(ocp.Checkpointer, "save", fail_halfway(ValueError("a mistake of ours")))
    with pytest.raises(ValueError, match="a mistake of ours") as caught:
        save_model(tmp_path / "model", CONFIG, params)
    assert not isinstance(caught.value, InputError)
    assert os.listdir(tmp_path) == []


def test_orbax_is_quiet(tmp_path, params, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        save_model(tmp_path / "model", CONFIG, params)
        load_model(tmp_path / "model")
        assert caplog.records == []
        logging.getLogger("absl").info("a line of the trainer")
    assert [record.message for record in caplog.records] == ["a line of the trainer"]


# Training checkpoints


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


def test_best_step_stays(tmp_path, params):
    with TrainingCheckpoints(tmp_path, CONFIG, max_to_keep=1, keep_best="sdr") as checkpoints:
        for step, sdr in enumerate([3.0, 7.0, float("nan"), 5.0, None]):
            metrics = None if sdr is None else {"sdr": sdr, "loss": 1.0}
            checkpoints.save(step, params, training_state(params, step), metrics=metrics)
        assert checkpoints.steps() == [1, 4]
    with TrainingCheckpoints(tmp_path, CONFIG, max_to_keep=1, keep_best="sdr") as checkpoints:
        checkpoints.save(5, params, training_state(params, 5), metrics={"sdr": 9.0})
        assert checkpoints.steps() == [5]


@pytest.mark.parametrize("item", ["params", "training"])
def test_damaged_newest_step_is_passed_over(tmp_path, params, caplog, item):
    save_steps(tmp_path, params, [10, 20, 30], max_to_keep=1)
    save_steps(tmp_path, params, [40], max_to_keep=None)
    truncate_step(tmp_path, 40, item)
    with TrainingCheckpoints(tmp_path, CONFIG, max_to_keep=1) as checkpoints:
        step, restored, _ = checkpoints.restore(params, training_state(params, 0))
        assert step == 30
        assert_same(jax.tree.map(lambda leaf: leaf + 30, params), restored)
        assert "40 is damaged, passed over and renamed to 40.damaged" in caplog.text
        # Training comes to that step again, and the damaged one is neither in the way nor counted.
        checkpoints.save(35, params, training_state(params, 35))
        assert checkpoints.steps() == [35]
        checkpoints.save(40, params, training_state(params, 40))
        assert checkpoints.restore(params, training_state(params, 0))[0] == 40


def test_loading_a_workdir_passes_over_damage_and_changes_nothing(tmp_path, params, caplog):
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
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "20"]  # nothing is thrown away
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        load_model(tmp_path)


def test_garbled_metrics(tmp_path, params, caplog):
    with TrainingCheckpoints(tmp_path, CONFIG, keep_best="sdr") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, params, training_state(params, step), metrics={"sdr": 1.0})
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text("{")
    with TrainingCheckpoints(tmp_path, CONFIG, keep_best="sdr") as checkpoints:
        assert checkpoints.steps() == [1]
    assert "2 is damaged" in caplog.text


def test_another_model_in_the_workdir(tmp_path, params):
    save_steps(tmp_path, params, [1])
    with pytest.raises(InputError, match="holds the training of another model: its dim_mask is 32, not 64"):
        TrainingCheckpoints(tmp_path, dataclasses.replace(CONFIG, dim_mask=64))
    TrainingCheckpoints(tmp_path, dataclasses.replace(CONFIG, dtype="bfloat16", remat=False)).close()


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
def test_disk_fills_up_in_training(tmp_path, params, monkeypatch, error):
    save_steps(tmp_path, params, [1])
    before = files_in(tmp_path)
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        monkeypatch.setattr(ocp.Checkpointer, "save", fail_halfway(error))
        with pytest.raises(InputError, match=r"cannot write \S+2: the disk is full"):
            checkpoints.save(2, params, training_state(params, 2))
    assert files_in(tmp_path) == before


# Kills


KILLED = """
import os, signal, sys
import orbax.checkpoint as ocp
from tiny_model import CONFIG, make_params
from wroformer_jax import checkpoint

path, what, params = sys.argv[1], sys.argv[2], make_params()

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if what == "step":
    checkpoints = checkpoint.TrainingCheckpoints(path, CONFIG)
    checkpoints.save(1, params, {"n": 1})
    ocp.PyTreeCheckpointHandler.finalize = die
    checkpoints.save(2, params, {"n": 2})
else:
    checkpoint.save_model(path, CONFIG, params)
    if what == "directory":
        ocp.PyTreeCheckpointHandler.finalize = die
    else:
        checkpoint.shutil.rmtree = die
        os.makedirs(path + ".replaced")
    checkpoint.save_model(path, CONFIG, make_params(seed=1), overwrite=True)
"""


def run_until_killed(path, what):
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), what],
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == -9, result.stderr


def test_killed_while_saving_a_step(tmp_path, params):
    run_until_killed(tmp_path, "step")
    assert [name for name in os.listdir(tmp_path / "checkpoints") if name != "1"], "it was killed too early"
    assert_same(params, load_model(tmp_path)[1])
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        step, restored, training = checkpoints.restore(params, {"n": 0})
        assert (step, training) == (1, {"n": 1})
        assert_same(params, restored)
        checkpoints.save(2, params, {"n": 2})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


@pytest.mark.parametrize("what", ["directory", "before the rename"])
def test_killed_while_overwriting_a_model_directory(tmp_path, params, what):
    run_until_killed(tmp_path / "model", what)
    assert_same(params, load_model(tmp_path / "model")[1])


def test_killed_between_the_two_renames(model_dir, params):
    replaced = model_dir.rename(model_dir.with_name("model.replaced"))
    with pytest.raises(InputError, match=r"an interrupted overwrite left \S+model.replaced: rename it back"):
        load_model(model_dir)
    replaced.rename(model_dir)
    assert_same(params, load_model(model_dir)[1])


def test_is_model_directory(tmp_path, model_dir):
    assert checkpoint.is_model_directory(model_dir)
    assert not checkpoint.is_model_directory(tmp_path)
