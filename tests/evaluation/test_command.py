"""`wroformer evaluate`: options that do not go together."""

import sys

import pytest
from support.evaluated_songs import evaluate, run, score


def test_arguments_that_do_not_fit(tmp_path, model, data, capsys, monkeypatch):
    assert run("--checkpoint", "model.ckpt") == 2
    assert "--data is missing" in capsys.readouterr().err
    assert evaluate(tmp_path, "--save-stems", data / "stems") == 2
    assert "is in --data" in capsys.readouterr().err
    assert run("--compare", tmp_path / "a.json", tmp_path / "b.json", "--stems", "vocals") == 2
    assert "--stems does not go with --compare: leave it out" in capsys.readouterr().err
    assert score(tmp_path, "--save-stems", tmp_path / "stems") == 2
    assert "--save-stems does not go with --estimates" in capsys.readouterr().err
    assert evaluate(tmp_path, "--csv", tmp_path / "results.json") == 2
    assert "--output and --csv are both" in capsys.readouterr().err
    assert evaluate(tmp_path, "--chunk-seconds", 0.001) == 2
    assert "chunk_seconds is 0.001" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--checkpoint", "model.ckpt", "--estimates", tmp_path, "--data", data)
    monkeypatch.setitem(sys.modules, "museval", None)  # as if it were not installed
    assert evaluate(tmp_path, "--museval") == 2
    assert "museval needs museval" in capsys.readouterr().err
