"""Scores of songs: their values, the notes about songs, and files that cannot be used."""

import csv
import tracemalloc

import numpy as np
import pytest
import soundfile
from support.evaluated_songs import RATE, SECONDS, evaluate, kept, make_song, score, sound, write
from support.museval_package import museval
from support.separation_models import limited_file_size

import wroformer_jax
from wroformer_jax.evaluation import metrics, scoring, songs


def test_scores_follow_the_definitions(tmp_path, model, data, capsys):
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
        by_second = [slice(i, i + RATE) for i in range(0, SECONDS * RATE, RATE)]
        csdr = np.median([10 * np.log10(np.sum(reference[:, s] ** 2) / np.sum(error[:, s] ** 2)) for s in by_second])
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


def test_it_scores_what_separate_returns(tmp_path, model):
    model.ramp = True  # shows how chunks are put together
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


def test_a_stored_mixture_is_separated_instead_of_the_sum_of_the_stems(tmp_path, model, data):
    mixture = sound(99)
    write(data / "test" / "Song 0" / "mixture.wav", mixture)
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    read = soundfile.read(tmp_path / "stems" / "Song 0" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * mixture, atol=1e-7)
    read = soundfile.read(tmp_path / "stems" / "Song 1" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * (sound(10) + sound(11) + sound(12)), atol=1e-6)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_silent_reference_is_undefined_and_not_averaged(tmp_path, model, data, capsys, is_there):
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


def test_a_stored_instrumental_is_not_counted_twice(tmp_path, model):
    audio = make_song(tmp_path / "data" / "Song", stems=("vocals", "drums", "instrumental"))
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    read = soundfile.read(tmp_path / "stems" / "Song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * (audio["vocals"] + audio["instrumental"]), atol=1e-6)


def test_mono_stems_are_copied_to_both_channels(tmp_path, model):
    make_song(tmp_path / "data" / "Song")
    mono = sound(0, channels=1)
    write(tmp_path / "data" / "Song" / "vocals.wav", mono)
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    read = soundfile.read(tmp_path / "stems" / "Song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * (mono + sound(1) + sound(2)), atol=1e-6)


@pytest.mark.parametrize("use_museval", [False, pytest.param(True, marks=pytest.mark.slow)])
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


def test_memory_does_not_grow_with_the_length_of_a_song(tmp_path):
    rate, peaks = 4 * RATE, []
    for seconds in (120, 240):
        reference, estimate = (tmp_path / f"{seconds} s" / name / "vocals.wav" for name in ("song", "estimate"))
        for seed, path in enumerate((reference, estimate)):
            write(path, sound(seed, seconds * rate), rate=rate)
        (song,) = songs.find_songs(reference.parent)
        metrics.bleedless_fullness(sound(0), sound(1), sample_rate=rate)  # fills the cache that all songs share
        tracemalloc.start()
        scoring.score_song(song, {"vocals": estimate})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 120 * 2000  # bytes: a few sums per second, whose samples take 32,000


def test_nothing_is_left_in_the_temporary_folder(tmp_path, model, data, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert evaluate(tmp_path) == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_is_named(tmp_path, model, data, capsys):
    with limited_file_size(5000):
        assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 2
    assert "vocals.wav cannot be written" in capsys.readouterr().err
    assert [path for path in (tmp_path / "stems").rglob("*") if path.is_file()] == []


def test_stems_of_different_lengths_are_padded_with_a_note(tmp_path, model, capsys):
    make_song(tmp_path / "data" / "Song")
    write(tmp_path / "data" / "Song" / "drums.wav", sound(1, 2000))
    assert evaluate(tmp_path, "--save-stems", tmp_path / "stems") == 0
    note = "padded with silence at the end (samples): drums.wav 1000"
    assert kept(tmp_path)["songs"]["Song"]["notes"] == [note]
    assert note in capsys.readouterr().err
    mixture = sound(0) + np.pad(sound(1, 2000), ((0, 0), (0, 1000))) + sound(2)
    read = soundfile.read(tmp_path / "stems" / "Song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(read, 0.25 * mixture, atol=1e-6)


def test_stems_of_different_rates_are_refused(tmp_path, model, data, capsys):
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
def test_a_damaged_file_loses_only_its_song(tmp_path, model, data, capsys, damage, message):
    damage(data / "test" / "Song 1" / "vocals.wav")
    assert evaluate(tmp_path) == 1
    err = capsys.readouterr().err
    assert "Song 1/vocals" in err
    assert message in err
    assert list(kept(tmp_path)["songs"]) == ["Song 0", "Song 2"]


def test_no_usable_song(tmp_path, model, capsys):
    make_song(tmp_path / "data" / "Song")
    half_a_wav(tmp_path / "data" / "Song" / "vocals.wav")
    assert evaluate(tmp_path) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert evaluate(tmp_path, "--verbose") == 2
    assert "Traceback" in capsys.readouterr().err
