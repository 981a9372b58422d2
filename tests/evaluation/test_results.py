"""Files of results: continued after an interruption, kept apart by their settings, and compared."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from support.evaluated_songs import evaluate, kept, make_song, run, score, scored_songs
from support.helpers import of_a_program

from wroformer_jax.evaluation import estimates, scoring, songs
from wroformer_jax.evaluation.results import Results


def test_a_rerun_scores_only_what_is_missing(tmp_path, model, data, capsys):
    assert evaluate(tmp_path) == 0
    before = kept(tmp_path)
    capsys.readouterr()
    make_song(data / "test" / "Song 1", 7)  # other music
    make_song(data / "test" / "Song 4", 4)
    assert evaluate(tmp_path) == 0
    err = capsys.readouterr().err
    assert "goes on with the results of 3 of 4 songs" in err
    assert re.findall(r"^\[\d+/4\] (Song \d):", err, re.MULTILINE) == ["Song 1", "Song 4"]
    after = kept(tmp_path)
    assert sorted(after["songs"]) == ["Song 0", "Song 1", "Song 2", "Song 4"]
    assert after["songs"]["Song 0"] == before["songs"]["Song 0"]
    assert after["songs"]["Song 1"] != before["songs"]["Song 1"]
    os.rename(data / "test" / "Song 4", tmp_path / "Song 4")
    assert evaluate(tmp_path) == 2
    assert "songs that are not in the data now (Song 4)" in capsys.readouterr().err
    assert kept(tmp_path) == after


def test_stems_to_keep_are_made_even_for_scored_songs(tmp_path, model, data, capsys):
    assert evaluate(tmp_path) == 0
    before = kept(tmp_path)
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    assert sorted(path.parent.name for path in (tmp_path / "stems").rglob("vocals.wav")) == list(before["songs"])
    assert kept(tmp_path) == before
    capsys.readouterr()
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    assert scored_songs(capsys) == []


def test_interrupted_and_continued_equals_done_at_once(tmp_path, data, capsys):
    for index in range(3):
        make_song(tmp_path / "estimates" / f"Song {index}", index + 3)
    assert score(tmp_path, "--output", tmp_path / "at once.json") == 0
    at_once = json.loads((tmp_path / "at once.json").read_text())

    def interrupt(line):
        raise KeyboardInterrupt

    results = Results.open(tmp_path / "results.json", at_once["settings"], at_once["about"])
    with pytest.raises(KeyboardInterrupt):
        scoring.evaluate(
            songs.find_songs(data),
            at_once["settings"]["stems"],
            estimates.FoundEstimates(tmp_path / "estimates"),
            results,
            say=interrupt,
            report=pytest.fail,
        )
    assert list(kept(tmp_path)["songs"]) == ["Song 0"]
    assert kept(tmp_path)["summary"] == {}  # it takes too long after every song
    capsys.readouterr()
    assert score(tmp_path) == 0
    assert scored_songs(capsys) == ["Song 1", "Song 2"]
    assert kept(tmp_path) == at_once


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, data, capsys):
    for index in range(3):
        make_song(tmp_path / "estimates" / f"Song {index}", index + 3)
    code = """
        import os, signal, sys
        from pathlib import Path
        from wroformer_jax.evaluation.estimates import FoundEstimates
        from wroformer_jax.evaluation.results import Results
        from wroformer_jax.evaluation.scoring import evaluate
        from wroformer_jax.evaluation.songs import find_songs
        data, estimates, output = map(Path, sys.argv[1:])
        settings = {"estimates": str(estimates), "data": str(data), "stems": ["bass", "drums", "vocals"]}
        results = Results.open(output, {**settings, "csdr": "definition"}, {})
        def say(line):
            if "Song 1" in line:
                os.kill(os.getpid(), signal.SIGKILL)
        evaluate(find_songs(data), settings["stems"], FoundEstimates(estimates), results, say=say, report=print)
    """
    arguments = (data, tmp_path / "estimates", tmp_path / "results.json")
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=of_a_program(),
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert list(kept(tmp_path)["songs"]) == ["Song 0", "Song 1"]
    assert score(tmp_path) == 0
    assert scored_songs(capsys) == ["Song 2"]
    assert kept(tmp_path)["summary"]["vocals"]["usdr"]["songs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chunk-seconds", 0.5), "chunk_seconds: 0.25 there, 0.5 now"),
        (("--overlap", 4), "overlap: 2 there, 4 now"),
        (("--stems", "vocals"), "stems: vocals, instrumental there, vocals now"),
    ],
)
def test_results_of_other_settings_are_not_mixed(tmp_path, model, data, capsys, arguments, message):
    assert evaluate(tmp_path) == 0
    before = kept(tmp_path)
    assert evaluate(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert kept(tmp_path) == before


def test_results_of_other_weights_or_of_another_tool_are_not_mixed(tmp_path, model, data, capsys):
    assert evaluate(tmp_path) == 0
    model.gain = 0.5
    assert evaluate(tmp_path) == 2
    assert "weights" in capsys.readouterr().err
    make_song(tmp_path / "estimates" / "Song 0", 3)
    assert score(tmp_path) == 2
    assert "holds results of other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a file of results"),
        ("[1]", "is not a file of results"),
        ('{"format": 7}', "has the format 7, expected 1"),
        ('{"format": 1, "settings": {}, "about": {}, "songs": {"a": {}}}', "holds no whole results"),
    ],
)
def test_an_output_that_is_something_else_is_kept(tmp_path, model, data, capsys, content, message):
    (tmp_path / "results.json").write_text(content)
    assert evaluate(tmp_path) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == content


def test_an_output_that_cannot_be_written_is_reported_before_the_first_song(tmp_path, model, data, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate(tmp_path, "--output", tmp_path / "file" / "results.json") == 2
    err = capsys.readouterr().err
    assert "cannot" in err
    assert "Song" not in err


def test_a_csv_that_cannot_be_written_loses_nothing_else(tmp_path, model, data, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate(tmp_path, "--csv", tmp_path / "file" / "results.csv") == 2
    out, err = capsys.readouterr()
    assert "cannot" in err
    assert "median" in out
    assert len(kept(tmp_path)["songs"]) == 3


def test_compare_gives_paired_differences(tmp_path, model, data, capsys):
    assert evaluate(tmp_path, "--output", tmp_path / "a.json") == 0
    model.gain = 0.5
    make_song(data / "test" / "Song 9", 9)
    assert evaluate(tmp_path, "--output", tmp_path / "b.json") == 0
    capsys.readouterr()
    assert run("--compare", tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "c.json") == 0
    out, err = capsys.readouterr()
    assert f"only in {tmp_path / 'b.json'}: Song 9" in err
    a, b = (json.loads((tmp_path / name).read_text())["songs"] for name in ("a.json", "b.json"))
    each = [b[song]["stems"]["vocals"]["usdr"] - a[song]["stems"]["vocals"]["usdr"] for song in a]
    summary = json.loads((tmp_path / "c.json").read_text())["vocals"]
    assert summary["usdr"]["mean"] == pytest.approx(np.mean(each))
    assert summary["usdr"]["songs"] == 3
    assert min(each) <= summary["usdr"]["mean_interval"][0] <= summary["usdr"]["mean_interval"][1] <= max(each)
    assert summary["leakage"]["mean"] is None
    row = next(line.split() for line in out.splitlines() if line.startswith("Song 0"))
    assert row[2] == f"{each[0]:+.2f}"
    assert "cSDR" not in err


def test_compare_writes_a_csv_and_warns_if_csdr_is_of_other_stems(tmp_path, model, data, capsys):
    assert evaluate(tmp_path, "--output", tmp_path / "a.json") == 0
    assert evaluate(tmp_path, "--output", tmp_path / "b.json", "--stems", "vocals", "--overlap", 3) == 0
    assert run("--compare", tmp_path / "a.json", tmp_path / "b.json", "--csv", tmp_path / "c.csv") == 0
    assert "cSDR depends on which stems are scored together" in capsys.readouterr().err
    a, b = (json.loads((tmp_path / name).read_text())["songs"] for name in ("a.json", "b.json"))
    with (tmp_path / "c.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["song"], line["stem"]) for line in lines] == [(song, "vocals") for song in a]
    for line in lines:
        before, after = (content[line["song"]]["stems"]["vocals"]["si_sdr"] for content in (a, b))
        assert float(line["si_sdr"]) == pytest.approx(after - before)
    assert run("--compare", tmp_path / "a.json", tmp_path / "b.json", "--csv", tmp_path / "a.json") == 2
    assert "--csv" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text())["songs"] == a


def test_compare_refuses_results_without_common_songs(tmp_path, model, data, capsys):
    assert evaluate(tmp_path, "--stems", "vocals") == 0
    assert evaluate(tmp_path, "--stems", "instrumental", "--output", tmp_path / "b.json") == 0
    assert run("--compare", tmp_path / "results.json", tmp_path / "b.json") == 2
    assert "have no stem of any song in common" in capsys.readouterr().err
    assert run("--compare", *[tmp_path / "results.json"] * 2, "--output", tmp_path / "results.json") == 2
    assert "is one of the results to compare" in capsys.readouterr().err
    assert run("--compare", tmp_path / "results.json", tmp_path / "none.json") == 2
    assert "none.json cannot be read: No such file" in capsys.readouterr().err
