"""Every kind of source gives the same model; anything else is refused in one sentence."""

import collections
import contextlib
import dataclasses
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.helpers import of_a_program
from support.separation_models import limited_file_size
from support.tiny_model import CONFIG, YAML, assert_same, make_params

import wroformer_jax
from wroformer_jax.checkpoints import loading
from wroformer_jax.checkpoints.torch_weights import to_state_dict
from wroformer_jax.config.known_checkpoints import KNOWN_CHECKPOINTS
from wroformer_jax.errors import InputError
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def model():
    return RoFormer(CONFIG)


@pytest.fixture
def torch_file(tmp_path, model, params):
    wroformer_jax.save(tmp_path / "weights.safetensors", model, params)
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.th", "a.safetensors", "a", "deeper/a", "deeper/a.ckpt"])
def test_save_and_load(tmp_path, model, params, name):
    wroformer_jax.save(tmp_path / name, model, params)
    assert (tmp_path / name).is_dir() == ("." not in name)
    config = CONFIG if "." in name else None
    loaded_model, loaded = wroformer_jax.load(tmp_path / name, config=config)
    assert loaded_model == model
    assert_same(params, loaded)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


def test_load_workdir(tmp_path, model, params):
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(5, params, {"n": 5})
    loaded_model, loaded = wroformer_jax.load(str(tmp_path))
    assert loaded_model == model
    assert_same(params, loaded)


class Named:
    """An os.PathLike that is not a Path, such as os.DirEntry."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Named, dict, type(CONFIG)])
def test_kinds_of_config(torch_file, tmp_path, model, kind):
    settings = tmp_path / "settings.yaml"
    settings.write_text(YAML)
    config = {dict: CONFIG.to_dict(), type(CONFIG): CONFIG}.get(kind) or kind(settings)
    assert wroformer_jax.load(torch_file, config=config)[0] == model


@pytest.mark.parametrize("kind", [str, Path, Named])
def test_kinds_of_source(torch_file, model, kind):
    assert wroformer_jax.load(kind(torch_file), config=CONFIG)[0] == model


def test_load_from_the_hub(torch_file, model, params, monkeypatch):
    """A known checkpoint brings its settings, whether it is asked for by its name or by its place."""
    known = KNOWN_CHECKPOINTS["smule-wsa"]
    downloaded = []

    def download(repo, file, *, revision):
        downloaded.append((repo, file, revision))
        return str(torch_file)

    monkeypatch.setitem(KNOWN_CHECKPOINTS, "smule-wsa", dataclasses.replace(known, config=CONFIG))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    torch_file.with_suffix(".yaml").unlink()
    for source in ("smule-wsa", "hf://smulelabs/windowed-roformer/mbr-win10-sink8.ckpt"):
        loaded_model, loaded = wroformer_jax.load(source)
        assert loaded_model == model
        assert_same(params, loaded)
    assert downloaded == [("smulelabs/windowed-roformer", "mbr-win10-sink8.ckpt", None)] * 2


def test_half_precision_weights_are_saved_in_float32(tmp_path, params):
    half = {key: value.astype(np.float16) for key, value in reversed(to_state_dict(CONFIG, params).items())}
    save_file(half, tmp_path / "half.safetensors")
    model, loaded = wroformer_jax.load(tmp_path / "half.safetensors", config=CONFIG)
    wroformer_jax.save(tmp_path / "saved.ckpt", model, loaded)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert list(saved) == list(reversed(half))
    assert {value.dtype for value in saved.values()} == {torch.float32}


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
import wroformer_jax
from support.tiny_model import CONFIG
from wroformer_jax.errors import InputError
try:
    model, params = wroformer_jax.load(sys.argv[1], config=CONFIG)
    wroformer_jax.save(sys.argv[2], model, params)
    print(model.config == CONFIG)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("in.safetensors", "out.safetensors", None),
        ("in.ckpt", "out.safetensors", r"in.ckpt: needs PyTorch, which is not installed: pip install"),
        ("in.safetensors", "out.pth", r"out.pth: needs PyTorch, which is not installed: pip install"),
    ],
)
def test_without_torch(tmp_path, model, params, monkeypatch, source, target, message):
    wroformer_jax.save(tmp_path / source, model, params)
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    expected = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
    with expected:
        wroformer_jax.save(tmp_path / target, *wroformer_jax.load(tmp_path / source, config=CONFIG))
    weights = sorted(name for name in os.listdir(tmp_path) if not name.endswith(".yaml"))
    assert weights == ([source] if message else [source, target])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("in.safetensors", "out.safetensors", r"True"),
        ("in.ckpt", "out.safetensors", r"\S+in.ckpt: needs PyTorch, which is not installed: pip install .*"),
        ("in.safetensors", "out.pth", r"\S+out.pth: needs PyTorch, which is not installed: pip install .*"),
    ],
)
def test_a_process_without_torch(tmp_path, model, params, source, target, said):
    wroformer_jax.save(tmp_path / source, model, params)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, tmp_path / source, tmp_path / target],
        env=of_a_program(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(said, result.stdout.strip())
    weights = sorted(name for name in os.listdir(tmp_path) if not name.endswith(".yaml"))
    assert weights == [source] + [target] * (said == "True")


def test_settings_are_written_beside_pytorch_files(tmp_path, model, params):
    wroformer_jax.save(tmp_path / "model.ckpt", model, params)
    wroformer_jax.save(tmp_path / "model.safetensors", model, params)  # the same settings serve both
    assert wroformer_jax.load(tmp_path / "model.ckpt")[0] == model
    (tmp_path / "model.yaml").write_text("model: {dim: 1}")
    with pytest.raises(InputError, match=r"model.yaml exists"):
        wroformer_jax.save(tmp_path / "model.pth", model, params)
    assert not (tmp_path / "model.pth").exists()


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml_beside_the_weights_is_used_and_logged(torch_file, model, suffix, caplog):
    torch_file.with_suffix(".yaml").unlink(missing_ok=True)  # `save` wrote it beside the weights
    beside = torch_file.with_suffix(suffix)
    beside.write_text(YAML)
    with caplog.at_level(logging.INFO, logger="wroformer"):
        assert wroformer_jax.load(torch_file)[0] == model
    assert f"settings from {beside}" in caplog.text


def test_config_given_wins_over_yaml_beside(torch_file, model, caplog):
    torch_file.with_suffix(".yaml").write_text("model: {num_stems: 3}")
    with caplog.at_level(logging.INFO, logger="wroformer"):
        assert wroformer_jax.load(torch_file, config=CONFIG)[0] == model
    assert "settings from" not in caplog.text


def test_bad_config(torch_file, tmp_path):
    with pytest.raises(InputError, match="unknown model field 'dims'"):
        wroformer_jax.load(torch_file, config={"dims": 3})
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        wroformer_jax.load(torch_file, config=tmp_path / "nowhere.yaml")


def test_config_for_a_model_directory(tmp_path, model, params):
    wroformer_jax.save(tmp_path / "model", model, params)
    with pytest.raises(InputError, match="model carries its own settings: leave config out"):
        wroformer_jax.load(tmp_path / "model", config=CONFIG)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kim-melbnd", "kim-melbnd is neither a file nor a known checkpoint, did you mean 'kim-melband'?"),
        ("xyz", r"xyz is neither a file nor a known checkpoint \(kim-melband, smule-wsa\)"),
        ("runs/quickstart", "runs/quickstart does not exist"),
        ("nowhere.ckpt", "nowhere.ckpt does not exist"),
        ("song.wav", "song.wav is not a checkpoint: expected a model directory, or a .ckpt, .pt, .pth, .th or"),
        ("empty", "empty has no model.json, so it is neither"),
        ("hf://owner/repo", "hf://owner/repo is not of the form"),
        ("hf://owner/repo/file.bin", "hf://owner/repo/file.bin is not a checkpoint: expected"),
        ("x" * 300, "cannot use the path x{300}: File name too long"),
        ("x" * 300 + ".ckpt", "cannot use the path .*: File name too long"),
    ],
)
def test_an_unusable_source_is_refused(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("it is downloaded"))
    with pytest.raises(InputError, match=message) as caught:
        wroformer_jax.load(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ""])
def test_target_whose_name_is_too_long(tmp_path, model, params, suffix):
    with pytest.raises(InputError, match="File name too long"):
        wroformer_jax.save(tmp_path / ("x" * 300 + suffix), model, params)
    assert os.listdir(tmp_path) == []


def test_name_with_no_room_for_a_yaml(tmp_path):
    path = tmp_path / ("x" * 252 + ".pt")
    config = dataclasses.replace(CONFIG, stft_n_fft=2048, stft_win_length=2048)
    wroformer_jax.save(tmp_path / "a.pt", RoFormer(config), make_params(config))
    (tmp_path / "a.pt").rename(path)
    assert loading.read(path)[0].stft_n_fft == 2048


def test_local_path_wins_over_known_name(tmp_path, model, params, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wroformer_jax.save("kim-melband", model, params)
    assert wroformer_jax.load("kim-melband")[0] == model


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "a"])
def test_save_refuses_what_exists(tmp_path, model, params, name):
    wroformer_jax.save(tmp_path / name, model, params)
    with pytest.raises(InputError, match=f"{name} exists already"):
        wroformer_jax.save(tmp_path / name, model, params)
    other = make_params(seed=1)
    wroformer_jax.save(tmp_path / name, model, other, overwrite=True)
    assert_same(other, wroformer_jax.load(tmp_path / name, config=None if name == "a" else CONFIG)[1])


def test_torch_file_where_a_directory_is(tmp_path, model, params):
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(InputError, match=r"a\.ckpt is a directory, expected the name of a file"):
        wroformer_jax.save(tmp_path / "a.ckpt", model, params, overwrite=True)


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_disk_full(tmp_path, model, params, monkeypatch, name):
    (tmp_path / name).write_text("earlier")
    usage = collections.namedtuple("Usage", "total used free")(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=rf"cannot write \S+{name}: the disk is full"):
        wroformer_jax.save(tmp_path / name, model, params, overwrite=True)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "earlier"


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_write_that_fails_halfway(tmp_path, model, params, name):
    with limited_file_size(10_000), pytest.raises(InputError, match=rf"cannot write \S+{name}: "):
        wroformer_jax.save(tmp_path / name, model, params)
    assert os.listdir(tmp_path) == []


def test_resolve(tmp_path, torch_file):
    assert loading.resolve(torch_file) == (torch_file, None)
    assert loading.resolve(tmp_path) == (tmp_path, None)
