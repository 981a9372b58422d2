"""`wroformer inspect`: what it says of runs at any stage, of models, and of what is neither."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil

import jax
import numpy as np
import pytest
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints.model_dir import save_model, write_model_json
from wroformer_jax.cli import app
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.params import abstract_params, num_parameters
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.workdir.checkpoints import TrainingCheckpoints
from wroformer_jax.workdir.inspection import inspect_directory, parameters, thinned
from wroformer_jax.workdir.log import TrainingLog
from wroformer_jax.workdir.ownership import claim

CONFIG = tiny_run(steps=60, checkpoints={"keep": 4})


def zeros(config):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(RoFormer(config)))


def scores(sdr):
    return {"vocals_usdr": sdr, "usdr": sdr, "mixture_usdr": -3.0, "improvement": sdr + 3.0}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A workdir as a run leaves it, without the training: steps 10 to 40, the best one 20."""
    workdir = tmp_path_factory.mktemp("run")
    claim(workdir, CONFIG)
    params = zeros(CONFIG.model)
    with TrainingCheckpoints(workdir, CONFIG.model, max_to_keep=4) as checkpoints:
        for step, score in ((10, 1.5), (20, 4.25), (30, None), (40, 3.0)):
            checkpoints.save(step, params, {"step": step}, score=score)
    with TrainingLog(workdir, 0, 60) as log:
        log.validation(0, scores(-1.0))
        rates = {"seconds_per_step": 1.0, "data_wait": 0.0, "audio_seconds_per_second": 1.0}
        for step in range(2, 42, 2):
            log.train(step, {"loss": 10.0 / step, "sdr": 0.0}, rates)
            if step % 10 == 0:
                log.validation(step, scores(step / 10))
    return workdir


@pytest.fixture
def workdir(made_once, tmp_path):
    return shutil.copytree(made_once, tmp_path / "run")


def inspect(capsys, *arguments):
    """What the command prints."""
    capsys.readouterr()
    assert app.main(["inspect", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def section(text, heading):
    """The rows of a table, their cells between two spaces or more."""
    [found] = [part for part in text.split("\n\n") if part.startswith(heading)]
    return [re.split(r"\s{2,}", line.strip()) for line in found.splitlines()[1:]]


# --- parameters


@pytest.mark.parametrize("config", [CONFIG.model, ModelConfig(), ModelConfig(band_scheme="band_split", num_sinks=0)])
def test_the_table_has_all_parameters_and_counts_those_that_are_trained(config):
    arrays = parameters(config)
    tree = jax.tree_util.tree_leaves_with_path(abstract_params(RoFormer(config)))
    assert [(array.name, array.shape) for array in arrays] == [
        ("/".join(key.key for key in path), leaf.shape) for path, leaf in tree
    ]
    assert sum(array.count for array in arrays if array.trained) == num_parameters(config)
    assert [array.name for array in arrays if not array.trained] == ["freq_rotary/freqs", "time_rotary/freqs"]
    assert all(array.count <= math.prod(array.shape) for array in arrays)


def test_modules_add_up(workdir, capsys):
    rows = section(inspect(capsys, workdir), "PARAMETERS")
    counts = {row[0]: int(row[-2].replace(",", "")) for row in rows if row[-1].endswith("%")}
    modules = ("band_split", "blocks/freq", "blocks/time", "mask_estimator", "sink_tokens")
    assert sum(counts[name] for name in modules) == counts["total"] == num_parameters(CONFIG.model)
    assert ["freq_rotary/freqs", "(2,)", "float32", "constant"] in rows
    assert rows[-1][-1] == "100.0%"


def test_no_weights_are_read(workdir, capsys):
    before = inspect(capsys, workdir)
    for file in (workdir / "checkpoints" / "40" / "params" / "d").iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    assert inspect(capsys, workdir) == before


def test_the_compute_says_what_windows_save(tmp_path, capsys):
    write_model_json(tmp_path, ModelConfig())
    out = inspect(capsys, tmp_path)
    assert "14,418 scores a head along time; full attention has 641,601, 44.5 times as many" in out
    assert float(section(out, "COMPUTE")[-2][1].replace(",", "")) == pytest.approx(2673, abs=1)
    write_model_json(tmp_path, ModelConfig(time_mixer="full", num_sinks=0))
    assert "times as many" not in inspect(capsys, tmp_path)


# --- settings


def test_settings_are_those_of_the_run(workdir, capsys):
    out = inspect(capsys, workdir)
    model, training = (dict(section(out, heading)) for heading in ("MODEL", "TRAINING"))
    assert model == {name: json.dumps(value) for name, value in CONFIG.model.to_dict().items()}
    assert training["steps"] == "60"
    assert training["augment.remix"] == "0.5"
    assert training["loss.windows"] == "[256, 64]"
    assert not any(name.startswith("model") for name in training)


# --- checkpoints


def test_checkpoints_the_newest_and_the_best(workdir, capsys):
    rows = section(inspect(capsys, workdir), "CHECKPOINTS")
    assert [(row[0], row[3:]) for row in rows] == [
        ("10", ["1.50 dB"]),
        ("20", ["4.25 dB", "best"]),
        ("30", ["-"]),
        ("40", ["3.00 dB", "newest"]),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[1]) for row in rows)
    sizes = [sum(file.stat().st_size for file in (workdir / "checkpoints" / row[0]).rglob("*")) for row in rows]
    for row, size in zip(rows, sizes, strict=True):
        assert float(row[2]) == pytest.approx(size / 1e6, abs=0.06)


def test_damaged_checkpoints_are_named_and_are_neither_newest_nor_best(workdir, capsys):
    steps = workdir / "checkpoints"
    (steps / "40" / "training" / "manifest.ocdbt").unlink()
    (steps / "20" / "params" / "_METADATA").write_bytes(b"")
    (steps / "10").rename(steps / "10.damaged")
    (steps / "50.orbax-checkpoint-tmp").mkdir()
    (steps / "notes.txt").write_text("kept")
    rows = section(inspect(capsys, workdir), "CHECKPOINTS")
    assert {row[0]: row[-1] for row in rows} == {
        "10.damaged": "damaged, set aside",
        "20": "damaged: params/_METADATA is missing or empty",
        "30": "newest",
        "40": "damaged: training/manifest.ocdbt is missing or empty",
        "50.orbax-checkpoint-tmp": "being written, or left by a crash",
    }


def test_a_checkpoint_that_vanishes_while_we_look_is_no_obstacle(workdir, monkeypatch):
    size_of = os.path.getsize

    def vanishing(file):
        shutil.rmtree(workdir / "checkpoints" / "10", ignore_errors=True)
        return size_of(file)

    monkeypatch.setattr(os.path, "getsize", vanishing)
    assert [step.name for step in inspect_directory(workdir).checkpoints] == ["20", "30", "40"]


# --- the curve


def test_the_curve_has_every_validation_and_the_mean_loss_up_to_it(workdir, capsys):
    out = inspect(capsys, workdir)
    rows = section(out, "CURVE")
    by_step = {int(row[0]): row[1:] for row in rows}
    assert by_step[0] == ["-", "-1.00 dB"]
    assert by_step[40][1] == "4.00 dB"
    for above, step in itertools.pairwise(sorted(by_step)):
        mean = np.mean([10.0 / s for s in range(above + 2 - above % 2, step + 1, 2)])
        assert float(by_step[step][0]) == pytest.approx(mean, abs=1e-4)
    assert "loss  █" in out
    assert re.search(r"^uSDR  ▁...█  -1 to 4 dB$", out, re.MULTILINE)
    assert "step 40 of 60 is the last one in the log" in out
    assert f"{workdir / 'curve.png'} is written at the end of the run" in out
    (workdir / "curve.png").write_bytes(b"")
    assert inspect(capsys, workdir).endswith(f"\n{workdir / 'curve.png'}\n")


def test_a_long_curve_is_thinned(workdir, capsys):
    with (workdir / "metrics.jsonl").open("a") as file:
        for step in range(50, 5000, 10):
            file.write(json.dumps({"kind": "train", "step": step, "loss": 0.1}) + "\n")
            file.write(json.dumps({"kind": "validation", "step": step, **scores(5.0)}) + "\n")
        file.write('{"kind": "train", "st')  # being written
    out = inspect(capsys, workdir)
    rows = section(out, "CURVE")
    assert 18 <= len(rows) <= 20
    assert (rows[0][0], rows[-1][0]) == ("0", "4990")
    assert max(map(len, out.splitlines())) < 120


def test_thinning_keeps_both_ends():
    assert thinned(range(5), 20) == [0, 1, 2, 3, 4]
    assert thinned(range(100), 4) == [0, 33, 66, 99]
    assert thinned([], 4) == []


def test_undefined_scores_are_left_out_of_the_curve(workdir, capsys):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 42, "usdr": NaN}\n')
    assert "nan" not in inspect(capsys, workdir).lower()
    assert json.loads(inspect(capsys, workdir, "--json"))["records"][-1]["usdr"] is None


# --- other stages, other directories


def test_as_json(workdir, capsys):
    found = json.loads(inspect(capsys, workdir, "--json"))
    assert found["model"] == CONFIG.model.to_dict()
    assert {**found["training"], "model": found["model"]} == CONFIG.to_dict()
    assert found["num_parameters"] == num_parameters(CONFIG.model)
    assert (found["newest"], found["best"]) == ("40", "20")
    assert [step["score"] for step in found["checkpoints"]] == [1.5, 4.25, None, 3.0]
    assert len(found["records"]) == 20 + 5
    assert found["parameters"][0].keys() == {"name", "shape", "dtype", "count", "trained"}


def test_a_run_that_has_just_begun(tmp_path, capsys):
    claim(tmp_path, CONFIG)
    out = inspect(capsys, tmp_path)
    assert "CHECKPOINTS\nnone yet" in out
    assert "CURVE\nno step is logged yet" in out
    assert dict(section(out, "MODEL"))["dim"] == "8"


def test_a_run_without_validation(tmp_path, capsys):
    claim(tmp_path, CONFIG)
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.0}) + "\n" for step in (2, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    out = inspect(capsys, tmp_path)
    assert section(out, "CURVE") == [["2", "1.0000", "-"], ["4", "1.0000", "-"]]
    assert "uSDR  " not in out.split("\n\n")[-1]


def test_a_model_directory(tmp_path, capsys):
    config = dataclasses.replace(CONFIG.model, dim=16)
    save_model(tmp_path / "model", config, zeros(config))
    out = inspect(capsys, tmp_path / "model")
    assert [part.split(maxsplit=1)[0] for part in out.split("\n\n")] == ["PARAMETERS", "COMPUTE", "MODEL"]
    found = json.loads(inspect(capsys, tmp_path / "model", "--json"))
    assert (found["training"], found["checkpoints"], found["records"]) == (None, [], [])


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({}, r"has no model\.json, so it is neither a model directory nor a training workdir"),
        (None, "does not exist"),
        ({"config.json": "{"}, r"config\.json is damaged: it is not JSON"),
        ({"config.json": "[]"}, r"config\.json is not the config of a training run: it has no 'model' section"),
        ({"config.json": '{"model": {"dimm": 8}}'}, r"config\.json: unknown model field 'dimm', did you mean 'dim'\?"),
        ({"model.json": "{"}, r"model\.json is damaged: it is not JSON"),
    ],
)
def test_what_is_neither_gets_one_sentence(tmp_path, capsys, made, sentence):
    directory = tmp_path / "directory"
    if made is not None:
        directory.mkdir()
        for name, text in made.items():
            (directory / name).write_text(text)
    assert app.main(["inspect", str(directory)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"wroformer: error: {re.escape(str(directory))}.*{sentence}.*\n", err)
    assert app.main(["inspect", str(directory), "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
