"""benchmarks/compare.py: its peers compute our model, its figures are ratios within rounds, its page is filled in."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.helpers import of_a_program, relative_error, tiny_config
from support.reference import make_reference

import wroformer_jax

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_ratios_are_taken_within_rounds():
    from alternating import compared

    ours, peer = compared("row", {"ours": [1.0, 10.0, 4.0], "peer": [2.0, 40.0, 4.0]})
    assert ours["ours / it"] == 1
    assert peer["ours / it"] == 0.5  # of 0.5, 0.25 and 1; the ratio of the medians would be 4 / 4
    assert peer["s"] == 4
    assert peer["quartiles"] == "0.375 to 0.750"


def test_ways_take_turns():
    from alternating import alternate

    order = []
    times = alternate({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert "".join(order) == "ab" + "ab" + "ba"  # a first run that is not counted, then two rounds
    assert [len(taken) for taken in times.values()] == [2, 2]


def test_a_table_takes_the_place_between_its_markers(tmp_path):
    from compare_pages import replace_between

    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- one: begin -->\nold\n<!-- one: end -->\nafter\n")
    replace_between(page, "one", "new")
    assert page.read_text() == "# Title\n<!-- one: begin -->\nnew\n<!-- one: end -->\nafter\n"
    with pytest.raises(ValueError, match="no place for two"):
        replace_between(page, "two", "new")


@pytest.mark.parametrize("kind", ["windowed", "full"])
def test_the_peers_compute_our_model(tmp_path, kind):
    import peers
    import torch
    from ours import as_full, inference, noise

    config = tiny_config(num_bands=12, stft_n_fft=512, stft_win_length=512)
    if kind == "full":
        config = as_full(config)
    torch.save(make_reference(config).state_dict(), tmp_path / "model.ckpt")  # always the same random weights
    model, params = wroformer_jax.load(tmp_path / "model.ckpt", config=config)
    mixture, _ = noise(config, 0.5)
    peer = peers.windowed(config, "cpu", 0.5, compiled=False) if kind == "windowed" else peers.full(config, "cpu")
    config = dataclasses.replace(model.config, zero_dc=False)  # as the package
    actual = np.asarray(inference(config, 0.5, params)())[:, 0]
    assert relative_error(actual, peers.inference(peer, mixture, "float32")().numpy()) < 1e-5


@pytest.mark.slow
def test_every_row_can_be_measured(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--quick", "--rounds", "2", "--output", str(tmp_path)]
    shown = subprocess.run(command, env=of_a_program(), capture_output=True, text=True, check=True)
    assert "left out" not in shown.stderr
    kept = json.loads((tmp_path / "compare_cpu.json").read_text())["rows"]
    assert set(kept) == {"inference-1", "training-1", "memory", "parts", "first-result"}
    assert [row["what"] for row in kept["inference-1"]["rows"]] == ["ours", "PyTorch full, eager"]
    assert all(row["s"] > 0 for name in ("inference-1", "training-1", "first-result") for row in kept[name]["rows"])
    assert {row["what"] for row in kept["parts"]["rows"]} >= {"time scores", "masks", "forward pass"}
    page = (tmp_path / "performance.md").read_text()
    assert "| inference-1 | ours |" in page
    assert (tmp_path / "performance_cpu.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--device", "gpu"], "JAX finds no GPU"), (["--quick", "--only", "inference-7"], "no row inference-7; rows: ")],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(arguments, sentence):
    command = [sys.executable, str(BENCHMARKS / "compare.py"), *arguments]
    shown = subprocess.run(command, env=of_a_program(), capture_output=True, text=True)
    assert shown.returncode == 1
    assert shown.stderr.startswith(sentence)
    assert shown.stderr.count("\n") == 1
