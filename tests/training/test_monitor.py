"""Steps whose loss is not finite: skipped, counted, and after too many in a row the end of the run."""

import json

import jax
import numpy as np
import pytest
from support.tiny_training import tiny_run, train_on

from wroformer_jax.checkpoints.model_dir import load_model
from wroformer_jax.errors import InputError


def nan_batches(first, last):
    def change(batch, number):
        factor = np.float32(np.nan if first <= number <= last else 1)
        return {name: audio * factor for name, audio in batch.items()}

    return change


def train_records(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "train"]


def is_finite(workdir):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(workdir)[1]))


def test_steps_that_are_not_finite_are_skipped_and_counted(whole, tmp_path, capsys):
    train_on(nan_batches(2, 3), tiny_run(), tmp_path)
    disturbed, undisturbed = train_records(tmp_path), train_records(whole[0])
    assert [record["skipped"] for record in disturbed] == [1, 2, 2, 2]
    assert [record["skipped_in_a_row"] for record in disturbed] == [1, 0, 0, 0]
    assert [record["skipped"] for record in undisturbed] == [0, 0, 0, 0]
    assert all(np.isfinite(value) for record in disturbed for name, value in record.items() if name != "kind")
    assert disturbed[0]["loss"] != undisturbed[0]["loss"]  # that of the first step alone
    said = capsys.readouterr().out
    assert (
        "step 2: 1 of the last 2 steps were skipped, because their loss or gradient was not finite (1 so far)" in said
    )
    assert is_finite(tmp_path)


def test_an_interval_without_a_finite_step_has_no_record(tmp_path, capsys):
    train_on(nan_batches(3, 4), tiny_run(), tmp_path)
    assert [record["step"] for record in train_records(tmp_path)] == [2, 6, 8]
    assert "step 4: 2 of the last 2 steps were skipped" in capsys.readouterr().out


def test_a_run_that_skips_every_step_is_no_success(tmp_path):
    """Even if it has fewer steps than may be skipped."""
    with pytest.raises(InputError, match="not finite at 8 steps in a row"):
        train_on(nan_batches(1, 8), tiny_run(optimizer={"max_skipped": 9}), tmp_path)


@pytest.mark.parametrize("bad_step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_divergence_is_named_and_its_batch_kept(tmp_path, bad_step):
    sentence = rf"not finite at 3 steps in a row, the last of them step {bad_step + 2}, whose batch is in \S+bad_batch"
    with pytest.raises(InputError, match=sentence):
        train_on(nan_batches(bad_step, 8), tiny_run(), tmp_path)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == (["2"] if bad_step == 1 else ["4", "6"])
    assert is_finite(tmp_path)
    with np.load(tmp_path / "bad_batch.npz") as batch:
        assert batch["mixture"].shape == (2, 2, tiny_run().crop_samples)
        assert batch["targets"].shape == (2, 1, 2, tiny_run().crop_samples)
