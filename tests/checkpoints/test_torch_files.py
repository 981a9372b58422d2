"""PyTorch files: every container is read and written bit for bit, and unusable files are refused in one sentence."""

import dataclasses
import io
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.torch_checkpoints import CONFIG, assert_same_bits, saved, state_dict, write_yaml

from wroformer_jax.checkpoints.torch_files import load_torch, save_torch
from wroformer_jax.checkpoints.torch_weights import TorchLayout, from_state_dict, slots, to_state_dict
from wroformer_jax.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_there_and_back_is_bit_identical(tmp_path, suffix, dtype):
    original = state_dict(CONFIG, dtype)
    source, back = tmp_path / f"model{suffix}", tmp_path / f"back{suffix}"
    save_file(original, source) if suffix == ".safetensors" else torch.save(original, source)
    config, params, layout = load_torch(source, write_yaml(tmp_path / "model.yaml", CONFIG))
    assert config == CONFIG
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    save_torch(back, config, params, TorchLayout.from_dict(layout.to_dict()))
    if suffix == ".safetensors":
        assert_same_bits(load_file(back), load_file(source))
        assert back.read_bytes() == source.read_bytes()
    else:
        assert_same_bits(torch.load(back, weights_only=True), original)


@pytest.mark.parametrize(
    ("suffix", "wrapper", "prefix"),
    [
        (".ckpt", None, ""),
        (".pt", None, "module."),
        (".pth", None, "model."),
        (".th", "state", ""),
        (".ckpt", "state_dict", "model."),
        (".ckpt", "model_state_dict", "module."),
        (".ckpt", "model", "model.module."),
    ],
)
def test_every_usual_container_is_read(tmp_path, suffix, wrapper, prefix):
    original = state_dict(CONFIG)
    content = {prefix + key: value for key, value in original.items()}
    if wrapper:
        content = {wrapper: content, "epoch": torch.tensor(3), "optimizer": {"lr": 1e-4}}
    path = saved(tmp_path, content, f"model{suffix}")
    config, params, _ = load_torch(path, CONFIG)
    for key, value in to_state_dict(config, params).items():
        np.testing.assert_array_equal(value, original[key].numpy())


def test_a_legacy_file_without_a_zip_is_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(state_dict(CONFIG), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert load_torch(path, CONFIG)[0] == CONFIG


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def truncated(path):
    whole = io.BytesIO()
    torch.save(state_dict(CONFIG), whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def zip_of_something_else(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def truncated_safetensors(path):
    save_file(state_dict(CONFIG), path)
    path.write_bytes(path.read_bytes()[:-100])


# Kinds of files that are not checkpoints: (name, how it is written, the message).
NOT_CHECKPOINTS = {
    "truncated": ("model.ckpt", truncated, "not a whole PyTorch checkpoint"),
    "empty": ("model.ckpt", lambda path: path.write_bytes(b""), "not a whole PyTorch checkpoint"),
    "text": ("model.ckpt", lambda path: path.write_text("<html>404"), "not a whole PyTorch checkpoint"),
    "zip of something else": ("model.ckpt", zip_of_something_else, "not a whole PyTorch checkpoint"),
    "code in a zip": (
        "model.ckpt",
        lambda path: torch.save({**state_dict(CONFIG), "extra": RunsCode()}, path),
        "a pickle with code in it",
    ),
    "code in a bare pickle": (
        "model.ckpt",
        lambda path: path.write_bytes(pickle.dumps(RunsCode())),
        "PyTorch checkpoint|a pickle with code in it",
    ),
    "truncated safetensors": ("model.safetensors", truncated_safetensors, "cannot be read as safetensors"),
    "text as safetensors": (
        "model.safetensors",
        lambda path: path.write_text("no tensors here at all"),
        "cannot be read as safetensors",
    ),
    "another suffix": (
        "model.bin",
        lambda path: torch.save(state_dict(CONFIG), path),
        "expected one ending in .ckpt",
    ),
    "missing file": ("nowhere.ckpt", lambda path: None, "no such file"),
    "no tensors": (
        "model.ckpt",
        lambda path: torch.save({"epoch": 3, "config": {"dim": 8}}, path),
        "no state dict found .found keys epoch, config",
    ),
    "a list": ("model.ckpt", lambda path: torch.save([1, 2], path), "no state dict found .found list"),
}


def without(*prefixes):
    """Returns the small model's state dict without some keys."""
    return {key: value for key, value in state_dict(CONFIG).items() if not key.startswith(prefixes)}


def frequencies_that_differ():
    state = state_dict(dataclasses.replace(CONFIG, time_transformer_depth=2))
    return {**state, "layers.0.0.layers.1.0.rotary_embed.freqs": torch.rand(2)}


def three_transformers():
    state = state_dict(CONFIG)
    return {**{key.replace("layers.0.1.", "layers.0.2."): value for key, value in state.items()}, **state}


# Kinds of state dicts that are not whole models of this family, and the messages.
NOT_MODELS = {
    "another model": (lambda: {"conv.weight": torch.zeros(3)}, "not a band-split or Mel-band RoFormer"),
    "missing keys": (
        lambda: without("layers.0.1.layers.0.1.net.4.bias", "layers.0.1.norm.gamma"),
        "lacks layers.0.1.layers.0.1.net.4.bias, layers.0.1.norm.gamma: not a whole",
    ),
    "extra keys": (
        lambda: {**state_dict(CONFIG), "hyper.alpha": torch.zeros(1)},
        "has the unknown hyper.alpha",
    ),
    "wrong shape": (
        lambda: {**state_dict(CONFIG), "layers.0.0.layers.0.0.to_out.0.weight": torch.zeros(8, 9)},
        r"to_out.0.weight has the shape \(8, 9\), expected \(8, 8\)",
    ),
    "integers": (
        lambda: {**state_dict(CONFIG), "layers.0.1.norm.gamma": torch.ones(8, dtype=torch.int64)},
        "norm.gamma has the dtype int64",
    ),
    "three transformers a block": (three_transformers, "linear_transformer_depth"),
    "frequencies that differ": (frequencies_that_differ, "differs from the other layers' frequencies"),
    "no mask estimator": (lambda: without("mask_estimators"), "lacks mask_estimators.0"),
    "no bands": (
        lambda: {**without("band_split"), "final_norm.gamma": torch.ones(8)},
        "lacks band_split.to_features.0.0.gamma",
    ),
    "scalar sinks": (lambda: {**state_dict(CONFIG), "sink_tokens": torch.tensor(1.0)}, "lacks sink_tokens"),
    "no heads": (
        lambda: {**state_dict(CONFIG), "layers.0.0.layers.0.0.to_gates.bias": torch.zeros(0)},
        "lacks layers.0.0.layers.0.0.to_gates.bias",
    ),
}


@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    name, write, message = NOT_CHECKPOINTS[kind]
    write(tmp_path / name)
    assert_refused(tmp_path / name, message)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_a_state_dict_that_is_not_a_model_is_refused_in_one_sentence(tmp_path, kind):
    make_state, message = NOT_MODELS[kind]
    assert_refused(saved(tmp_path, make_state()), message)


def assert_refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        load_torch(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.zip", "expected a name ending in"), ("no/out.pt", "cannot write .*out.pt: No such file")],
)
def test_a_write_that_fails_leaves_nothing(tmp_path, name, message):
    params = from_state_dict(CONFIG, state_dict(CONFIG))
    with pytest.raises(InputError, match=message):
        save_torch(tmp_path / name, CONFIG, params)
    assert list(tmp_path.iterdir()) == []


def test_lost_precision_is_logged(tmp_path, caplog):
    load_torch(saved(tmp_path, state_dict(CONFIG, torch.float64)), CONFIG)
    assert f"{len(list(slots(CONFIG)))} tensors are float64" in caplog.text
