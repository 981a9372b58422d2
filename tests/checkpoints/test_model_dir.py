"""Model directories: round trips, damage, and writes that fail or are killed, which must not cost other files."""

import collections
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.helpers import of_a_program
from support.tiny_model import CONFIG, FULL, assert_same, fail_halfway, files_in, largest_file, make_params

from wroformer_jax.checkpoints.model_dir import is_model_directory, load_model, save_model, write_model_json
from wroformer_jax.checkpoints.torch_weights import TorchLayout
from wroformer_jax.errors import InputError


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture
def model_dir(tmp_path, params):
    save_model(tmp_path / "model", CONFIG, params)
    return tmp_path / "model"


def test_round_trip_is_bit_identical(tmp_path, params):
    layout = TorchLayout((("b.weight", "float16"), ("a.weight", "float32")))
    save_model(tmp_path / "new" / "model", CONFIG, params, torch_layout=layout)
    config, loaded, loaded_layout = load_model(tmp_path / "new" / "model")
    assert config == CONFIG
    assert loaded_layout == layout
    assert_same(params, loaded)
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))


def test_the_form_of_attention_is_no_part_of_a_saved_model(tmp_path, params):
    save_model(tmp_path / "model", dataclasses.replace(CONFIG, attention_impl="pallas"), params)
    assert load_model(tmp_path / "model")[0] == dataclasses.replace(CONFIG, attention_impl="auto")


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
def test_overwrite_keeps_anything_but_model_directories(tmp_path, params, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("notes")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("notes")
    if kind == "workdir":
        write_model_json(path, CONFIG)
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


@pytest.mark.parametrize(("saved", "expected"), [(0, None), (300, 300)])
def test_everything_at_once_was_a_default_before_forms_had_names(model_dir, saved, expected):
    fields = json.loads((model_dir / "model.json").read_text())
    del fields["model"]["attention_impl"], fields["model"]["frames_at_once"]
    fields["model"]["places_at_once"] = saved
    (model_dir / "model.json").write_text(json.dumps(fields))
    assert load_model(model_dir)[0].places_at_once == expected


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "mod', b"\x80\xff"])
def test_garbled_model_json(model_dir, content):
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


@pytest.mark.parametrize("error", FULL)
def test_disk_that_fills_up_while_saving(model_dir, params, monkeypatch, error):
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


def test_other_errors_are_not_reported_as_a_full_disk(tmp_path, params, monkeypatch):
    monkeypatch.setattr(ocp.Checkpointer, "save", fail_halfway(ValueError("a mistake of ours")))
    with pytest.raises(ValueError, match="a mistake of ours") as caught:
        save_model(tmp_path / "model", CONFIG, params)
    assert not isinstance(caught.value, InputError)
    assert os.listdir(tmp_path) == []


def test_metadata_of_orbax_is_not_needed(model_dir, params, caplog):
    (model_dir / "params" / "_CHECKPOINT_METADATA").write_text("{garbled")
    assert_same(params, load_model(model_dir)[1])
    assert caplog.records == []


def test_overwrite_keeps_neighbours(model_dir):
    beside = {name: model_dir.with_name(name) for name in ("model.replaced", ".model-replaced-", ".model-mine")}
    for path in beside.values():
        path.mkdir()
        (path / "notes.txt").write_text("notes")
    save_model(model_dir, CONFIG, make_params(seed=1), overwrite=True)
    assert sorted(os.listdir(model_dir.parent)) == sorted([*beside, "model"])
    assert all((path / "notes.txt").read_text() == "notes" for path in beside.values())


def test_overwrite_through_a_link(tmp_path, model_dir):
    link, other = tmp_path / "elsewhere" / "link", make_params(seed=1)
    link.parent.mkdir()
    link.symlink_to(model_dir)
    save_model(link, CONFIG, other, overwrite=True)
    assert link.is_symlink()
    assert_same(other, load_model(model_dir)[1])
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "model"]


def test_overwrite_that_cannot_take_the_name(model_dir, params, monkeypatch):
    rename = Path.rename

    def refuse(self, target):
        if target == model_dir and self.name != "model":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=r"cannot write \S+model: Permission denied"):
        save_model(model_dir, CONFIG, make_params(seed=1), overwrite=True)
    assert os.listdir(model_dir.parent) == ["model"]
    assert_same(params, load_model(model_dir)[1])


KILLED = """
import os, pathlib, signal, sys
import orbax.checkpoint as ocp
from support.tiny_model import CONFIG, make_params
from wroformer_jax.checkpoints.model_dir import save_model

path, when = pathlib.Path(sys.argv[1]), sys.argv[2]
rename = pathlib.Path.rename

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_before_the_first_rename(self, target):
    if self == path:
        die()
    return rename(self, target)

def die_before_the_second_rename(self, target):
    if target == path:
        die()
    return rename(self, target)

save_model(path, CONFIG, make_params())
if when == "writing":
    ocp.PyTreeCheckpointHandler.finalize = die
elif when == "between the renames":
    pathlib.Path.rename = die_before_the_second_rename
else:
    pathlib.Path.rename = die_before_the_first_rename
save_model(path, CONFIG, make_params(seed=1), overwrite=True)
"""


def run_until_killed(path, when):
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), when],
        env=of_a_program(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == -9, result.stderr


def test_interrupted_overwrite_is_named(model_dir):
    """The state on disk after a kill between the two renames of an overwrite."""
    holder = model_dir.with_name(".model-replaced-x1")
    holder.mkdir()
    model_dir.rename(holder / "model")
    with pytest.raises(InputError, match=rf"an interrupted overwrite left {holder}/model: move it back"):
        load_model(model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["writing", "before the renames"])
def test_killed_while_overwriting(tmp_path, params, when):
    run_until_killed(tmp_path / "model", when)
    assert_same(params, load_model(tmp_path / "model")[1])


@pytest.mark.slow
def test_killed_between_the_two_renames(tmp_path, params):
    model_dir = tmp_path / "a model"
    run_until_killed(model_dir, "between the renames")
    with pytest.raises(
        InputError, match=r"does not exist, but an interrupted overwrite left .*: move it back"
    ) as caught:
        load_model(model_dir)
    replaced = Path(str(caught.value).removesuffix(": move it back").split(" left ")[1])
    replaced.rename(model_dir)
    assert_same(params, load_model(model_dir)[1])


def test_name_that_is_too_long(tmp_path, params):
    with pytest.raises(InputError, match="File name too long"):
        load_model(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="File name too long"):
        save_model(tmp_path / ("x" * 300), CONFIG, params)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["model [1]", "model [1]/model", "model*", "model?"])
def test_path_with_a_glob_pattern(tmp_path, model_dir, params, name):
    with pytest.raises(InputError, match=r"cannot write \S+/model.*: choose a place without \*, \? and \["):
        save_model(tmp_path / name, CONFIG, params, overwrite=True)
    assert os.listdir(tmp_path) == ["model"]
    model_dir.rename(tmp_path / "model [1]")  # reading works
    assert_same(params, load_model(tmp_path / "model [1]")[1])


def test_is_model_directory(tmp_path, model_dir):
    assert is_model_directory(model_dir)
    assert not is_model_directory(tmp_path)
