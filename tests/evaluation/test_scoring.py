"""`wroformer evaluate` as people call it: what it finds, scores, keeps, and what can go wrong."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
import soundfile
from support.helpers import of_a_program
from support.museval_package import museval
from support.separation_models import GainModel, limited_file_size, noise

import wroformer_jax
from wroformer_jax.checkpoints import loading
from wroformer_jax.cli import app
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import estimates, metrics, scoring, songs
from wroformer_jax.evaluation.results import Results

RATE = 1000
SECONDS = 3


def sound(seed, samples=SECONDS * RATE, channels=2, peak=0.4):
    return noise(channels, samples, seed, peak)


def write(path, audio, rate=RATE, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, rate, **({"subtype": "FLOAT"} if path.suffix == ".wav" else {}) | keywords)


def make_song(folder, seed=0, stems=("vocals", "drums", "bass"), **keywords):
    audio = {stem: sound(10 * seed + i) for i, stem in enumerate(stems)}
    for stem, samples in audio.items():
        write(folder / f"{stem}.wav", samples, **keywords)
    return audio


@pytest.fixture
def data(tmp_path):
    """Three songs, as MUSDB18-HQ lays them out."""
    for index in range(3):
        make_song(tmp_path / "data" / "test" / f"Song {index}", index)
    return tmp_path / "data"


@pytest.fixture
def model(monkeypatch):
    """Stands in for every checkpoint: vocals are the mixture times `gain`."""
    model = GainModel()
    model.gain = 0.25
    monkeypatch.setattr(loading, "load", lambda source, *, config=None: (model, model.params(model.gain)))
    return model


def scored_songs(capsys):
    """The songs that have been scored since the last look, from the lines of progress."""
    return re.findall(r"^\[\d+/\d+\] (Song \d):", capsys.readouterr().err, re.MULTILINE)


def run(*arguments):
    return app.main(["evaluate", *map(str, arguments)])


def evaluate(tmp_path, *arguments):
    """With the stand-in for a model; returns the exit status."""
    usual = ("--checkpoint", "model.ckpt", "--data", tmp_path / "data", "--chunk-seconds", 0.25)
    return run(*usual, "--output", tmp_path / "results.json", *arguments)


def score(tmp_path, *arguments):
    """With estimates that are there; returns the exit status."""
    usual = ("--estimates", tmp_path / "estimates", "--data", tmp_path / "data")
    return run(*usual, "--output", tmp_path / "results.json", *arguments)


def kept(tmp_path):
    return json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


# --- what it scores


def test_scores_are_those_of_the_metrics(tmp_path, model, data, capsys):
    assert evaluate(tmp_path, "--csv", tmp_path / "results.csv") == 0
    content = kept(tmp_path)
    assert list(content["songs"]) == ["Song 0", "Song 1", "Song 2"]
    stems = {stem: sound(10 + i).astype(np.float64) for i, stem in enumerate(("vocals", "drums", "bass"))}
    mixture = sum(stems.values())
    references = {"vocals": stems["vocals"], "instrumental": stems["drums"] + stems["bass"]}
    estimates = {"vocals": 0.25 * mixture, "instrumental": 0.75 * mixture}
    for stem, reference in references.items():
        error = reference - estimates[stem]
        scale = np.sum(reference * estimates[stem]) / np.sum(reference**2)
        row = content["songs"]["Song 1"]["stems"][stem]
        assert row["usdr"] == pytest.approx(10 * np.log10(np.sum(reference**2) / np.sum(error**2)), abs=1e-4)
        si_sdr = 10 * np.log10(np.sum((scale * reference) ** 2) / np.sum((estimates[stem] - scale * reference) ** 2))
        assert row["si_sdr"] == pytest.approx(si_sdr, abs=1e-4)
        by_frame = [slice(i, i + RATE) for i in range(0, SECONDS * RATE, RATE)]
        csdr = np.median([10 * np.log10(np.sum(reference[:, f] ** 2) / np.sum(error[:, f] ** 2)) for f in by_frame])
        assert row["csdr"] == pytest.approx(csdr, abs=1e-4)
        bleedless, fullness = metrics.bleedless_fullness(reference, estimates[stem], sample_rate=RATE)
        assert (row["bleedless"], row["fullness"]) == pytest.approx((bleedless, fullness), rel=1e-4)
        assert row["leakage"] is None
    values = [song["stems"]["vocals"]["usdr"] for song in content["songs"].values()]
    summary = content["summary"]["vocals"]["usdr"]
    assert summary["songs"] == 3
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["median"] == pytest.approx(np.median(values))
    assert summary["mean_interval"][0] < summary["mean"] < summary["mean_interval"][1]
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert float(lines[1]["usdr"]) == values[1]
    assert lines[0]["leakage"] == ""
    out, err = capsys.readouterr()
    assert f"{summary['mean']:.2f}" in out
    assert [line.split(":")[0] for line in err.splitlines()] == [f"[{i}/3] Song {i - 1}" for i in (1, 2, 3)]


def test_what_is_scored_is_what_separate_gives(tmp_path, model):
    model.ramp = True  # how chunks are put together shows
    for i, stem in enumerate(("vocals", "other")):
        write(tmp_path / "data" / "Song" / f"{stem}.flac", sound(i, 100_000), rate=1600)  # several blocks
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems", "--overlap", 3, "--batch-size", 4) == 0
    references = [
        soundfile.read(tmp_path / "data" / "Song" / f"{stem}.flac", dtype="float32")[0].T
        for stem in ("vocals", "other")
    ]
    stems = wroformer_jax.separate(
        model,
        model.params(0.25),
        sum(references),
        sample_rate=1600,
        chunk_seconds=0.25,
        overlap=3,
        batch_size=4,
    )
    rows = kept(tmp_path)["songs"]["Song"]["stems"]
    for stem, reference in zip(("vocals", "instrumental"), references, strict=True):
        saved = soundfile.read(tmp_path / "stems" / "Song" / f"{stem}.wav", dtype="float32")[0].T
        np.testing.assert_array_equal(saved, stems[stem])
        assert rows[stem]["usdr"] == pytest.approx(metrics.usdr(reference, stems[stem]), abs=1e-6)


def test_the_mixture_is_the_file_where_there_is_one(tmp_path, model, data):
    mixture = sound(99)
    write(data / "test" / "Song 0" / "mixture.wav", mixture)
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    read = soundfile.read(tmp_path / "stems" / "Song 0" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * mixture, atol=1e-7)
    read = soundfile.read(tmp_path / "stems" / "Song 1" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * (sound(10) + sound(11) + sound(12)), atol=1e-6)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_silent_reference_is_undefined_and_is_not_averaged(tmp_path, model, data, capsys, is_there):
    vocals = data / "test" / "Song 1" / "vocals.wav"
    if is_there:
        write(vocals, np.zeros((2, SECONDS * RATE), np.float32))
    else:
        vocals.unlink()
    assert evaluate(tmp_path, "--stems", "vocals", "--csv", tmp_path / "results.csv") == 0
    row = kept(tmp_path)["songs"]["Song 1"]["stems"]["vocals"]
    assert [row[name] for name in ("usdr", "si_sdr", "csdr", "bleedless", "fullness")] == [None] * 5
    assert row["leakage"] == pytest.approx(20 * np.log10(0.25), abs=1e-3)
    summary = kept(tmp_path)["summary"]["vocals"]
    others = [kept(tmp_path)["songs"][song]["stems"]["vocals"]["usdr"] for song in ("Song 0", "Song 2")]
    assert summary["usdr"]["songs"] == 2
    assert summary["usdr"]["mean"] == pytest.approx(np.mean(others))
    assert summary["leakage"]["songs"] == 1
    assert summary["leakage"]["mean_interval"] is None
    out, err = capsys.readouterr()
    assert next(line for line in out.splitlines() if line.startswith("Song 1")).split()[2:7] == ["-"] * 5
    assert "Song 1: vocals undefined" in err
    line = (tmp_path / "results.csv").read_text().splitlines()[2]
    assert line.startswith("Song 1,vocals,,,,,,-12.04")


def test_an_instrumental_of_its_own_is_not_counted_twice(tmp_path, model):
    audio = make_song(tmp_path / "data" / "Song", stems=("vocals", "drums", "instrumental"))
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    read = soundfile.read(tmp_path / "stems" / "Song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * (audio["vocals"] + audio["instrumental"]), atol=1e-6)


def test_the_rest_of_a_model_of_another_stem_is_not_scored():
    assert estimates.offered_stems(GainModel(stems=("drums",)).config) == ("drums",)
    assert estimates.offered_stems(GainModel(stems=("instrumental",)).config) == ("instrumental", "vocals")
    assert estimates.offered_stems(GainModel(stems=("vocals", "drums")).config) == ("vocals", "drums")


def test_a_model_of_vocals_and_other_may_mean_all_but_the_vocals(tmp_path, capsys):
    make_song(tmp_path / "data" / "Song", stems=("vocals", "drums", "other"))
    make_song(tmp_path / "estimates" / "Song", 3, stems=("vocals", "other"))
    assert score(tmp_path) == 0
    assert "warning: the songs also have drums, but the estimates are only vocals and other" in capsys.readouterr().err
    assert score(tmp_path, "--stems", "vocals", "--output", tmp_path / "vocals.json") == 0
    (tmp_path / "data" / "Song" / "drums.wav").unlink()
    assert score(tmp_path, "--output", tmp_path / "both.json") == 0
    assert "warning" not in capsys.readouterr().err


def test_names_with_spaces_letters_of_all_kinds_and_songs_of_one_name(tmp_path, model, capsys):
    for place in ("a/Élan vital & 夜に", "b/Élan vital & 夜に", ".hidden/Song"):
        make_song(tmp_path / "data" / place)
    (tmp_path / "data" / "a" / "Élan vital & 夜に" / "cover.jpg").write_text("")
    assert evaluate(tmp_path) == 0
    assert list(kept(tmp_path)["songs"]) == ["a/Élan vital & 夜に", "b/Élan vital & 夜に"]
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines[:8]}) == 1  # aligned


def test_names_that_are_not_utf8(tmp_path, model):
    make_song(tmp_path / "data" / "plain")
    os.rename(tmp_path / "data" / "plain", os.fsencode(tmp_path / "data") + b"/caf\xe9")
    assert evaluate(tmp_path, "--csv", tmp_path / "results.csv") == 0
    assert evaluate(tmp_path) == 0  # what was written can be read


def test_mono_stems_stand_on_both_channels(tmp_path, model):
    make_song(tmp_path / "data" / "Song")
    mono = sound(0, channels=1)
    write(tmp_path / "data" / "Song" / "vocals.wav", mono)
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    read = soundfile.read(tmp_path / "stems" / "Song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * (mono + sound(1) + sound(2)), atol=1e-6)


def test_one_name_in_two_forms_of_unicode_is_refused(tmp_path):
    for name in ("Ä", "A\u0308"):
        make_song(tmp_path / "data" / name, 0)
    if len(list((tmp_path / "data").iterdir())) == 1:
        pytest.skip("this file system does not tell one form from the other")
    with pytest.raises(InputError, match="are the same name in two forms of Unicode: rename one of them"):
        songs.find_songs(tmp_path / "data")


def test_folders_of_stems_are_no_songs(tmp_path):
    for stem in ("vocals", "drums"):
        (tmp_path / "data" / stem).mkdir(parents=True)
        for song in ("a", "b"):
            write(tmp_path / "data" / stem / f"{song}.wav", sound(0))
    with pytest.raises(InputError, match=r"has a folder for each stem \(drums, vocals"):
        songs.find_songs(tmp_path / "data")


def test_links_to_folders_are_followed_and_links_in_circles_are_not(tmp_path, model):
    make_song(tmp_path / "elsewhere" / "Song")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "A link").symlink_to(tmp_path / "elsewhere" / "Song")
    (tmp_path / "elsewhere" / "Song" / "back").symlink_to(tmp_path / "elsewhere")
    assert evaluate(tmp_path) == 0
    assert [*kept(tmp_path)["songs"]][:1] == ["A link"]


def test_a_name_is_the_same_in_composed_and_decomposed_letters(tmp_path):
    """As Linux and as a Mac write it."""
    composed, decomposed = "Ame\u0301lie", "Am\u00e9lie"
    make_song(tmp_path / "data" / composed)
    make_song(tmp_path / "estimates" / composed, 3)
    assert score(tmp_path) == 0
    assert list(kept(tmp_path)["songs"]) == [decomposed]


def test_memory_does_not_grow_with_the_length_of_a_song(tmp_path):
    rate, peaks = 4 * RATE, []
    for seconds in (120, 240):
        reference, estimate = (tmp_path / f"{seconds} s" / name / "vocals.wav" for name in ("song", "estimate"))
        for seed, path in enumerate((reference, estimate)):
            write(path, sound(seed, seconds * rate), rate=rate)
        (song,) = songs.find_songs(reference.parent)
        metrics.bleedless_fullness(sound(0), sound(1), sample_rate=rate)  # what is kept for all songs
        tracemalloc.start()
        scoring.score_song(song, {"vocals": estimate})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 120 * 2000  # bytes: a few sums are kept of each second, whose samples are 32,000


def test_nothing_is_left_in_the_temporary_folder(tmp_path, model, data, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert evaluate(tmp_path) == 0
    assert list((tmp_path / "tmp").iterdir()) == []


# --- going on


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


def test_stems_that_are_to_be_kept_are_made_of_songs_that_are_scored_already(tmp_path, model, data, capsys):
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


def test_an_output_that_cannot_be_written_is_known_before_the_first_song(tmp_path, model, data, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate(tmp_path, "--output", tmp_path / "file" / "results.json") == 2
    err = capsys.readouterr().err
    assert "cannot" in err
    assert "Song" not in err


def test_a_csv_that_cannot_be_written_costs_nothing_else(tmp_path, model, data, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate(tmp_path, "--csv", tmp_path / "file" / "results.csv") == 2
    out, err = capsys.readouterr()
    assert "cannot" in err
    assert "median" in out
    assert len(kept(tmp_path)["songs"]) == 3


def test_a_full_disk_is_named(tmp_path, model, data, capsys):
    with limited_file_size(5000):
        assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 2
    assert "vocals.wav cannot be written" in capsys.readouterr().err
    assert [path for path in (tmp_path / "stems").rglob("*") if path.is_file()] == []


# --- estimates of other tools


def test_estimates_of_another_tool(tmp_path, data, capsys):
    for index in range(3):
        folder = tmp_path / "estimates" / ("test" if index == 2 else "") / f"Song {index}"
        make_song(folder, index + 3, stems=("vocals", "drums"))
    assert score(tmp_path) == 0
    content = kept(tmp_path)
    assert content["settings"]["stems"] == ["drums", "vocals"]
    expected = metrics.usdr(sound(11), sound(41))
    assert content["songs"]["Song 1"]["stems"]["drums"]["usdr"] == pytest.approx(expected, abs=1e-6)
    assert score(tmp_path, "--stems", "vocals,bass", "--output", tmp_path / "other.json") == 2
    assert "--stems bass: there are estimates of drums, vocals" in capsys.readouterr().err


@pytest.mark.parametrize("use_museval", [False, True])
def test_csdr_is_that_of_musevals_own_command(tmp_path, use_museval, monkeypatch):
    """benchmarks/museval_command.py does the same with the command `museval`, which takes longer and needs ffmpeg."""
    museval()
    from museval import TrackStore, cli, glob

    rate, stems = 8000, ("vocals", "drums")
    for index, stem in enumerate(stems):
        reference, error = (sound(seed, round(4.6 * rate)) for seed in (index, 5 + index))
        reference[:, : 2 * rate] *= 0.3  # seconds differ
        if stem == "vocals":
            reference[:, rate : 2 * rate] = 0  # counts for no stem
        write(tmp_path / "data" / "Song" / f"{stem}.wav", reference, rate=rate, subtype="PCM_16")
        write(tmp_path / "estimates" / "Song" / f"{stem}.wav", 0.7 * reference + 0.2 * error, rate=rate)
    assert score(tmp_path, *(["--museval"] if use_museval else [])) == 0

    stores, glob_of_any_order = [], glob.glob
    # It pairs references and estimates by the order in which the file system gives them.
    monkeypatch.setattr(glob, "glob", lambda pattern: sorted(glob_of_any_order(pattern)))
    monkeypatch.setattr(TrackStore, "__repr__", lambda store: stores.append(store.scores) or "")  # it prints 3 digits
    cli.bsseval([str(tmp_path / "data" / "Song"), str(tmp_path / "estimates" / "Song")])
    assert [target["name"] for target in stores[0]["targets"]] == ["drums.wav", "vocals.wav"]
    for target in stores[0]["targets"]:
        frames = [float(frame["metrics"]["SDR"]) for frame in target["frames"]]
        assert len(frames) == 4
        assert np.isnan(frames[1])
        found = kept(tmp_path)["songs"]["Song"]["stems"][target["name"].removesuffix(".wav")]["csdr"]
        assert found == pytest.approx(np.nanmedian(frames), abs=1.1e-5)  # museval rounds to 1e-5 dB


def test_missing_estimates_are_named_and_the_other_songs_scored(tmp_path, data, capsys):
    make_song(tmp_path / "estimates" / "Song 0", 3)
    make_song(tmp_path / "estimates" / "Song 1", 4, stems=("vocals",))
    assert score(tmp_path) == 1
    assert list(kept(tmp_path)["songs"]) == ["Song 0"]
    err = capsys.readouterr().err
    assert "Song 1 has no estimate of bass: expected bass.wav" in err
    assert f"{tmp_path / 'estimates' / 'Song 2'} is missing" in err
    assert "2 of 3 songs could not be scored" in err


def test_estimates_of_other_lengths_are_brought_to_the_songs_and_said(tmp_path, capsys):
    audio = make_song(tmp_path / "data" / "Song", stems=("vocals", "drums"))
    write(tmp_path / "estimates" / "Song" / "vocals.wav", audio["vocals"][:, :-100])
    write(tmp_path / "estimates" / "Song" / "drums.wav", np.pad(audio["drums"], ((0, 0), (0, 50))))
    assert score(tmp_path) == 0
    rows = kept(tmp_path)["songs"]["Song"]
    cut = np.pad(audio["vocals"][:, :-100], ((0, 0), (0, 100)))
    assert rows["stems"]["vocals"]["usdr"] == pytest.approx(metrics.usdr(audio["vocals"], cut))
    assert rows["stems"]["drums"]["usdr"] == pytest.approx(140, abs=0.1)
    assert rows["notes"] == [
        "the estimate drums.wav cut by 50 samples at the end",
        "the estimate vocals.wav padded by 100 samples at the end",
    ]
    assert "Song: the estimate drums.wav cut by 50 samples" in capsys.readouterr().err


def test_estimates_that_cannot_be_compared_are_named(tmp_path, data, capsys):
    for index in range(3):
        make_song(tmp_path / "estimates" / f"Song {index}", index)
    write(tmp_path / "estimates" / "Song 0" / "vocals.wav", sound(0), rate=2 * RATE)
    for stem in ("vocals", "drums", "bass"):
        write(data / "test" / "Song 1" / f"{stem}.wav", sound(0, channels=1))
    assert score(tmp_path) == 1
    err = capsys.readouterr().err
    assert "vocals.wav has 2000 Hz and its song 1000 Hz" in err
    assert "has 2 channels and its song 1: mix it down first" in err


def test_folders_without_estimates_are_named(tmp_path, data, capsys):
    assert score(tmp_path) == 2
    assert "estimates is not a folder" in capsys.readouterr().err
    make_song(tmp_path / "estimates" / "Another Song")
    assert score(tmp_path) == 2
    assert "has no estimates of these songs: expected SONG/STEM.wav in it" in capsys.readouterr().err


# --- comparing


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


def test_compare_writes_a_csv_and_says_if_csdr_is_of_other_stems(tmp_path, model, data, capsys):
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


def test_compare_of_what_has_nothing_in_common(tmp_path, model, data, capsys):
    assert evaluate(tmp_path, "--stems", "vocals") == 0
    assert evaluate(tmp_path, "--stems", "instrumental", "--output", tmp_path / "b.json") == 0
    assert run("--compare", tmp_path / "results.json", tmp_path / "b.json") == 2
    assert "have no song and stem in common" in capsys.readouterr().err
    assert run("--compare", *[tmp_path / "results.json"] * 2, "--output", tmp_path / "results.json") == 2
    assert "is one of the results to compare" in capsys.readouterr().err
    assert run("--compare", tmp_path / "results.json", tmp_path / "none.json") == 2
    assert "none.json cannot be read: No such file" in capsys.readouterr().err


# --- bad input


def test_stems_of_different_lengths_are_padded_and_said(tmp_path, model, capsys):
    make_song(tmp_path / "data" / "Song")
    write(tmp_path / "data" / "Song" / "drums.wav", sound(1, 2000))
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    note = "padded with silence at the end (samples): drums.wav 1000"
    assert kept(tmp_path)["songs"]["Song"]["notes"] == [note]
    assert note in capsys.readouterr().err
    mixture = sound(0) + np.pad(sound(1, 2000), ((0, 0), (0, 1000))) + sound(2)
    read = soundfile.read(tmp_path / "stems" / "Song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * mixture, atol=1e-6)


def test_rates_that_differ_within_a_song(tmp_path, model, data, capsys):
    write(data / "test" / "Song 1" / "drums.wav", sound(1), rate=2 * RATE)
    assert evaluate(tmp_path) == 1
    assert "drums.wav has 2000 Hz and bass.wav 1000 Hz" in capsys.readouterr().err
    assert list(kept(tmp_path)["songs"]) == ["Song 0", "Song 2"]


def half_a_wav(path):
    write(path, sound(0, 20_000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_broken_flac(path):
    write(path.with_suffix(".flac"), sound(0, 200_000))
    content = bytearray(path.with_suffix(".flac").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = bytes(20_000)
    path.with_suffix(".flac").write_bytes(content)
    path.unlink()


def not_a_number(path):
    audio = sound(0)
    audio[0, 1234] = np.nan
    write(path, audio)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(half_a_wav, "is truncated"), (a_broken_flac, "is damaged"), (not_a_number, "has NaN or infinite samples")],
)
def test_a_file_that_decodes_half_way_costs_its_song(tmp_path, model, data, capsys, damage, message):
    damage(data / "test" / "Song 1" / "vocals.wav")
    assert evaluate(tmp_path) == 1
    err = capsys.readouterr().err
    assert "Song 1/vocals" in err
    assert message in err
    assert list(kept(tmp_path)["songs"]) == ["Song 0", "Song 2"]


def test_no_song_can_be_used(tmp_path, model, capsys):
    make_song(tmp_path / "data" / "Song")
    half_a_wav(tmp_path / "data" / "Song" / "vocals.wav")
    assert evaluate(tmp_path) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert evaluate(tmp_path, "--verbose") == 2
    assert "Traceback" in capsys.readouterr().err


def test_folders_without_songs(tmp_path, model, capsys):
    assert evaluate(tmp_path) == 2
    assert "data is not a folder" in capsys.readouterr().err
    (tmp_path / "data" / "test" / "empty").mkdir(parents=True)
    assert evaluate(tmp_path) == 2
    assert f"no songs in {tmp_path / 'data' / 'test'}: expected a folder for each" in capsys.readouterr().err
    write(tmp_path / "data" / "test" / "empty" / "mixture.wav", sound(0))
    assert evaluate(tmp_path) == 2
    assert "no songs in" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_no_target_stem_anywhere(tmp_path, model, data, capsys):
    for path in data.rglob("vocals.wav"):
        path.unlink()
    assert evaluate(tmp_path, "--stems", "vocals") == 2
    assert "no song has the stem vocals: the songs have bass, drums" in capsys.readouterr().err
    assert evaluate(tmp_path, "--stems", "guitar") == 2
    assert "--stems guitar: there are estimates of vocals, instrumental" in capsys.readouterr().err


def test_two_files_for_one_stem(tmp_path, model, data, capsys):
    write(data / "test" / "Song 1" / "vocals.flac", sound(0))
    assert evaluate(tmp_path) == 2
    assert "vocals.flac and vocals.wav are both the stem vocals" in capsys.readouterr().err


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
