"""`wroformer prepare` as people call it: what it says, writes and returns."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support.stems_on_disk import RATE, damage, files_of, make_song

from wroformer_jax.cli import app
from wroformer_jax.cli import prepare as command
from wroformer_jax.data import segments
from wroformer_jax.data.prepare import find_stems
from wroformer_jax.data.record_set import RecordSet, is_set


def prepare(*arguments):
    return app.main(["prepare", *map(str, arguments)])


@pytest.fixture
def data(tmp_path):
    for index in range(3):
        make_song(tmp_path / "data" / "train" / f"Song {index}", index, samples=20 * RATE, suffix=".flac")
    make_song(tmp_path / "data" / "test" / "Song 3", 3, stems=("vocals", "drums", "mixture"))
    return tmp_path / "data"


def usual(tmp_path):
    return ("--output", tmp_path / "set", "--sample-rate", RATE, "--workers", 1)


def test_a_set_and_its_table(tmp_path, data, capsys):
    assert prepare(data, *usual(tmp_path), "--segment-seconds", 5, "--encoding", "int16") == 0
    record_set = RecordSet.open(tmp_path / "set")
    assert (record_set.sample_rate, record_set.segment_samples, record_set.encoding) == (RATE, 5 * RATE, "int16")
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["split", "stem", "songs", "hours", "silent"],
        ["-" * len(out.splitlines()[0])],
        ["train", "3", "0.02"],
        ["drums", "3", "0.02", "0.0%"],
    ]
    *lines, pace = err.splitlines()
    assert lines == [f"looking for songs in {data}", "inspecting 9 files of 4 songs (layout 'songs')"]
    assert re.fullmatch(r"wrote 0\.04 h of audio in \d+\.\d s, \d+x real time", pace)


def test_with_several_workers(tmp_path, data):
    assert prepare(data, *usual(tmp_path), "--workers", 2) == 0
    assert len(RecordSet.open(tmp_path / "set").songs("train")) == 3


def test_warnings_are_told(tmp_path, data, capsys):
    (data / "test" / "Song 3").rename(data / "test" / "Song 0")
    assert prepare(data, *usual(tmp_path)) == 0
    warning = (
        "wroformer: warning: in train and in test, by their names, so that scores will be too good: 1 song (Song 0)"
    )
    assert warning in capsys.readouterr().err.splitlines()


def test_bad_files_are_all_named(tmp_path, data, capsys):
    (data / "train" / "Song 0" / "vocals.flac").write_text("text")
    (data / "train" / "Song 2" / "drums.flac").write_bytes(b"")
    assert prepare(data, *usual(tmp_path)) == 2
    *_, first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"wroformer: error: {data}/train/Song 0/vocals.flac is not audio that can be read")
    assert second.startswith(f"wroformer: error: {data}/train/Song 2/drums.flac is empty (0 bytes)")
    assert last == (
        f"wroformer: error: 2 files of 2 songs cannot be used; nothing was written to {tmp_path / 'set'}; "
        "repair them, or leave these songs out with --skip-bad"
    )
    assert not (tmp_path / "set").exists()


def test_bad_files_are_skipped_when_asked_to(tmp_path, data, capsys):
    (data / "train" / "Song 0" / "vocals.flac").write_text("text")
    damage(data / "train" / "Song 2" / "drums.flac")
    assert prepare(data, *usual(tmp_path), "--skip-bad") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 songs skipped for bad files: Song 0, Song 2"
    assert "wroformer: warning: Song 0 is skipped: " in err
    assert "wroformer: warning: Song 2 is skipped: " in err
    assert [song.name for song in RecordSet.open(tmp_path / "set").songs("train")] == ["Song 1"]


def test_a_file_that_decodes_half_way(tmp_path, data, capsys):
    damage(data / "train" / "Song 2" / "drums.flac")
    assert prepare(data, *usual(tmp_path)) == 2
    *_, first, last = capsys.readouterr().err.splitlines()
    assert f"{data}/train/Song 2/drums.flac is damaged at " in first
    assert "1 file of 1 song cannot be used; the rest is written (2 of 3 shards) and will be kept" in last
    assert not is_set(tmp_path / "set")


def test_a_set_that_is_there(tmp_path, data, capsys):
    assert prepare(data, *usual(tmp_path)) == 0
    assert prepare(data, *usual(tmp_path)) == 2
    assert "is a prepared set already: use --overwrite" in capsys.readouterr().err
    assert prepare(data, *usual(tmp_path), "--overwrite") == 0


def test_nothing_to_prepare(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    assert prepare(tmp_path / "data", *usual(tmp_path)) == 2
    assert "no audio files in" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_synthetic_songs(tmp_path, capsys):
    options = ("--synthetic", 3, "--seconds", 1, "--seed", 7, "--sample-rate", 16000, "--segment-seconds", 1)
    assert prepare(*options, "--workers", 1, "--output", tmp_path / "set") == 0
    record_set = RecordSet.open(tmp_path / "set")
    assert [song.name for song in record_set.songs("test")] == ["synthetic-7-test-00000"]
    assert len(record_set.songs("train")) == 2
    assert prepare(*options, "--workers", 1, "--output", tmp_path / "all", "--test-songs", 0) == 0
    assert RecordSet.open(tmp_path / "all").splits == ("train",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either a SOURCE or --synthetic N songs"),
        (["data", "--synthetic", "3"], "name either a SOURCE or --synthetic N songs"),
        (["data", "--seed", "0"], "--seed goes with --synthetic only"),
        (["data", "--test-songs", "1"], "--test-songs goes with --synthetic only"),
        (["--synthetic", "3", "--layout", "songs"], "--layout goes with a SOURCE only"),
        (["--synthetic", "3", "--skip-bad"], "--skip-bad goes with a SOURCE only"),
        (["--synthetic", "3", "--test-songs", "4"], "--test-songs 4 are more than the 3 songs in all"),
        (["--synthetic", "3", "--sample-rate", "8000"], "expected at least 16000 Hz"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, arguments, message):
    assert prepare(*arguments, "--output", tmp_path / "set") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--layout", "flat"],
        ["--encoding", "mp3"],
        ["--workers", "0"],
        ["--segment-seconds", "0.5"],
        ["--seconds", "0"],
        ["--seconds", "inf"],
        ["--seconds", "long"],
        ["--seed", "-1"],
    ],
)
def test_a_bad_option(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        prepare("data", "--output", tmp_path / "set", *arguments)
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}: " in capsys.readouterr().err


def test_what_is_offered_is_what_there_is():
    assert command.LAYOUTS == find_stems.LAYOUTS
    assert command.ENCODINGS == segments.ENCODINGS


def test_progress_in_a_log(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr("time.perf_counter", itertools.count(step=60).__next__)  # a minute between two looks at it
    assert prepare(data, *usual(tmp_path)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("writing: ")]
    assert len(lines) > 1
    assert re.fullmatch(r"writing: 100%, 0\.04 of 0\.04 h of audio, \d+x real time, about 0 min left", lines[-1])


def test_progress_on_a_terminal(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert prepare(data, *usual(tmp_path), "--overwrite") == 0
    err = capsys.readouterr().err
    assert "writing: 100%|" in err
    assert "0.04 of 0.04 h of audio" in err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_by_hand(tmp_path, workers):
    """Ctrl-C reaches all processes at once."""
    for index in range(12):
        make_song(tmp_path / "data" / f"Song {index}", index, samples=60 * RATE)
    arguments = ["prepare", tmp_path / "data", *usual(tmp_path), "--workers", workers]
    command_line = [sys.executable, "-m", "wroformer_jax.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command_line,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # It is ignored where the tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("set/.preparing/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "wroformer: interrupted; the same command goes on where it was"
    assert "Traceback" not in err
    assert all(not name.startswith(".preparing/.") for name in files_of(tmp_path / "set"))
    assert app.main([*map(str, arguments)]) == 0
    assert len(RecordSet.open(tmp_path / "set").songs("train")) == 12
