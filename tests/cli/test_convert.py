"""The converter's command line: both ways bit for bit, its exit status, and nothing half-written."""

import collections
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from safetensors.torch import load_file
from support.tiny_model import CONFIG, YAML, make_params

from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.checkpoints.torch_weights import to_state_dict
from wroformer_jax.cli import app, convert
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints

FULL = dataclasses.replace(CONFIG, time_mixer="full", window=ModelConfig.window, num_sinks=0, zero_dc=False)
FULL_YAML = "\n".join(line for line in YAML.splitlines() if "wsa" not in line) + "\n  zero_dc: false\n"


def state_dict(config, dtype=torch.float32, seed=0):
    arrays = to_state_dict(config, make_params(config, seed))
    # In an order of its own, which has to come back too.
    return {key: torch.from_numpy(arrays[key]).to(dtype) for key in reversed(arrays)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state_dict(CONFIG), "wsa.ckpt")
    Path("wsa.yaml").write_text(YAML)
    torch.save(state_dict(FULL), "full.ckpt")
    Path("full.yaml").write_text(FULL_YAML)
    return tmp_path


def main(argv):
    return convert.main(argv, program="convert_torch_checkpoint.py")


def fails(capsys, *argv):
    before = sorted(os.listdir())
    assert main(argv) == 2
    assert sorted(os.listdir()) == before
    message = capsys.readouterr().err
    assert message.startswith("convert_torch_checkpoint.py: error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_there_and_back_is_bit_identical(folder, dtype, suffix):
    original = state_dict(FULL, dtype)
    torch.save({"state_dict": {f"module.{key}": value for key, value in original.items()}}, "in.ckpt")
    assert main(["to-jax", "in.ckpt", "model", "--config", "full.yaml"]) == 0
    assert load_model("model")[0] == FULL
    assert main(["to-torch", "model", f"out{suffix}"]) == 0
    if suffix == ".ckpt":
        back = torch.load("out.ckpt", weights_only=True)
        assert list(back) == list(original)
    else:
        back = load_file("out.safetensors")
        assert sorted(back) == sorted(original)
    for key, value in original.items():
        assert back[key].dtype == dtype
        assert torch.equal(back[key], value)


def test_report(folder, capsys):
    assert main(["to-jax", "wsa.ckpt", "model"]) == 0
    shown = capsys.readouterr().out
    parameters = sum(value.numel() for key, value in state_dict(CONFIG).items() if "rotary" not in key)
    for part in (
        "reading wsa.ckpt",
        "settings from wsa.yaml",
        "writing model",
        f"parameters  {parameters:,}\n",
        "windowed sink, window 4, 2 sinks",
        "next: wroformer separate song.wav --checkpoint model",
    ):
        assert part in shown
    assert main(["to-torch", "model", "back.ckpt"]) == 0
    assert "model.load_state_dict(torch.load('back.ckpt'), strict=True)" in capsys.readouterr().out


def test_what_was_assumed_is_said(folder, capsys):
    torch.save(state_dict(dataclasses.replace(CONFIG, stft_n_fft=2048, stft_win_length=2048)), "bare.ckpt")
    assert main(["to-jax", "bare.ckpt", "model"]) == 0
    shown = capsys.readouterr().out
    assert "assumed" in shown
    assert "stft_hop_length 441" in shown


@pytest.mark.parametrize(
    ("options", "window", "sinks"), [(["--window", "6", "--sinks", "3"], 6, 3), (["--sinks", "3"], 10, 3)]
)
def test_windowed_sinks(folder, capsys, options, window, sinks):
    assert main(["to-jax", "full.ckpt", "model", *options]) == 0
    assert f"{sinks} sink tokens, random with seed 0" in capsys.readouterr().out
    config, params, _ = load_model("model")
    assert (config.time_mixer, config.window, config.num_sinks) == ("windowed_sink", window, sinks)
    assert params["sink_tokens"].shape == (sinks, 8, 16)
    assert main(["to-jax", "full.ckpt", "other", *options, "--seed", "1"]) == 0
    assert not np.array_equal(load_model("other")[1]["sink_tokens"], params["sink_tokens"])
    assert main(["to-torch", "model", "model.ckpt"]) == 0
    back, original = torch.load("model.ckpt", weights_only=True), state_dict(FULL)
    assert torch.equal(back.pop("sink_tokens"), torch.from_numpy(params["sink_tokens"]))
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)


def test_half_weights_stay_half_beside_new_sinks(folder):
    original = state_dict(FULL, torch.float16)
    torch.save(original, "half.ckpt")
    assert main(["to-jax", "half.ckpt", "model", "--config", "full.yaml", "--sinks", "3"]) == 0
    assert main(["to-torch", "model", "back.ckpt"]) == 0
    back = torch.load("back.ckpt", weights_only=True)
    assert back.pop("sink_tokens").dtype == torch.float32
    assert back.keys() == original.keys()
    for key, value in original.items():
        assert back[key].dtype == torch.float16
        assert torch.equal(back[key], value)


def test_workdir_to_torch(folder):
    with TrainingCheckpoints("run", CONFIG) as checkpoints:
        checkpoints.save(1, make_params(), {"n": 1})
    assert main(["to-torch", "run", "run.ckpt"]) == 0
    back, original = torch.load("run.ckpt", weights_only=True), state_dict(CONFIG)
    assert all(torch.equal(back[key], original[key]) for key in original)


def test_existing_dst(folder, capsys):
    save_model("model", CONFIG, make_params(seed=1))
    Path("taken.ckpt").write_text("earlier")
    assert "model exists already" in fails(capsys, "to-jax", "wsa.ckpt", "model")
    assert "taken.ckpt exists already" in fails(capsys, "to-torch", "wsa.ckpt", "taken.ckpt")
    assert Path("taken.ckpt").read_text() == "earlier"
    assert main(["to-jax", "wsa.ckpt", "model", "--overwrite"]) == 0
    assert main(["to-torch", "model", "taken.ckpt", "--overwrite"]) == 0
    original, back = state_dict(CONFIG), torch.load("taken.ckpt", weights_only=True)
    assert all(torch.equal(back[key], original[key]) for key in original)


def test_dst_of_the_wrong_kind(folder, capsys):
    assert "model.ckpt is named like a PyTorch file" in fails(capsys, "to-jax", "wsa.ckpt", "model.ckpt")
    message = fails(capsys, "to-torch", "wsa.ckpt", "model.npz")
    assert "model.npz must end in one of .ckpt, .pt, .pth, .th, .safetensors" in message
    os.mkdir("folder.ckpt")
    assert "folder.ckpt is a directory" in fails(capsys, "to-torch", "wsa.ckpt", "folder.ckpt", "--overwrite")
    os.mkdir("folder")
    assert "folder is not a model directory" in fails(capsys, "to-jax", "wsa.ckpt", "folder", "--overwrite")


def test_src_that_is_none(folder, capsys):
    assert "nowhere.ckpt does not exist" in fails(capsys, "to-jax", "nowhere.ckpt", "model")
    assert "did you mean 'smule-wsa'" in fails(capsys, "to-jax", "smule-was", "model")
    assert "hf://owner/repo/a.bin is not a checkpoint" in fails(capsys, "to-jax", "hf://owner/repo/a.bin", "model")
    Path("broken.ckpt").write_bytes(Path("wsa.ckpt").read_bytes()[:1000])
    assert "broken.ckpt" in fails(capsys, "to-jax", "broken.ckpt", "model")


def test_names_that_are_too_long(folder, capsys):
    long = "x" * 300
    for argv in (
        ("to-jax", long, "model"),
        ("to-jax", "wsa.ckpt", long),
        ("to-jax", "wsa.ckpt", "model", "--config", long),
        ("to-torch", f"{long}.ckpt", "a.ckpt"),
        ("to-torch", "wsa.ckpt", f"{long}.ckpt"),
    ):
        assert "File name too long" in fails(capsys, *argv)


def test_interrupted(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    before = sorted(os.listdir())
    monkeypatch.setattr(ocp.Checkpointer, "save", interrupt)
    assert main(["to-jax", "wsa.ckpt", "model"]) == 130
    assert capsys.readouterr().err == "convert_torch_checkpoint.py: interrupted\n"
    assert sorted(os.listdir()) == before


def test_options_that_do_not_fit(folder, capsys):
    assert "nowhere.yaml" in fails(capsys, "to-jax", "wsa.ckpt", "model", "--config", "nowhere.yaml")
    Path("other.yaml").write_text(YAML.replace("dim: 16", "dim: 32"))
    assert "other.yaml says dim is 32" in fails(capsys, "to-jax", "wsa.ckpt", "model", "--config", "other.yaml")
    assert "window" in fails(capsys, "to-jax", "wsa.ckpt", "model", "--window", "10")
    assert "window is -1" in fails(capsys, "to-jax", "full.ckpt", "model", "--window", "-1")
    save_model("dir", CONFIG, make_params())
    assert "leave config out" in fails(capsys, "to-jax", "dir", "model", "--config", "wsa.yaml")


@pytest.mark.parametrize("command", [["to-jax", "wsa.ckpt", "out"], ["to-torch", "wsa.ckpt", "out.safetensors"]])
def test_disk_full(folder, capsys, monkeypatch, command):
    usage = collections.namedtuple("Usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert f"cannot write {command[-1]}: the disk is full" in fails(capsys, *command)


def test_disk_that_fills_up(folder, capsys, monkeypatch):
    def save(self, directory, *_, **__):
        directory.mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    assert "cannot write out: the disk is full" in fails(capsys, "to-jax", "wsa.ckpt", "out")


def test_verbose_shows_a_traceback(folder, capsys):
    assert main(["to-torch", "wsa.ckpt", "out.npz", "-v"]) == 2
    message = capsys.readouterr().err
    assert "Traceback (most recent call last)" in message
    assert message.splitlines()[-1].startswith("convert_torch_checkpoint.py: error: out.npz must end in")


@pytest.mark.parametrize("seed", ["-1", "1.5", "one", ""])
def test_seed_that_is_none(seed, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["to-jax", "a", "b", "--sinks", "1", f"--seed={seed}"])
    assert caught.value.code == 2
    assert f"argument --seed: {seed!r} is not a whole number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [[], ["to-jax"], ["to-torch", "a"], ["to-numpy", "a", "b"], ["to-jax", "a", "b", "-x"]]
)
def test_usage_errors(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("convert_torch_checkpoint.py")
    assert error.endswith("--help)\n")
    assert len(error.splitlines()) == 1


def test_script():
    script = Path(__file__).parents[2] / "convert_torch_checkpoint.py"
    result = subprocess.run(
        [sys.executable, script, "to-jax", "nowhere.ckpt", "model"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "convert_torch_checkpoint.py: error: nowhere.ckpt does not exist\n"


def test_the_subcommand_does_the_same(folder, capsys):
    assert app.main(["convert", "to-jax", "wsa.ckpt", "model"]) == 0
    assert load_model("model")[0] == CONFIG
    capsys.readouterr()
    assert app.main(["convert", "to-torch", "nowhere", "a.ckpt"]) == 2
    assert capsys.readouterr().err.startswith("wroformer: error: nowhere is neither a file nor a known checkpoint")
