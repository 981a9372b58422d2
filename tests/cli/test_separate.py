"""The command as people call it: what it writes, says and returns, and everything that can go wrong."""

import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support.helpers import of_a_program
from support.separation_models import GainModel, limited_file_size, noise, tiny_real_model

import wroformer_jax
from wroformer_jax.checkpoints import loading
from wroformer_jax.cli import app
from wroformer_jax.cli.separate import FORMATS
from wroformer_jax.errors import InputError
from wroformer_jax.io import audio_writer

RATE = 1000


@pytest.fixture
def model(monkeypatch):
    """Stands in for every checkpoint: vocals are a quarter of the mixture."""
    model = GainModel()
    loaded = []

    def load(source, *, config=None):
        if source == "missing.ckpt":
            raise InputError("missing.ckpt: no such checkpoint")
        loaded.append((source, config))
        return model, model.params(0.25)

    monkeypatch.setattr(loading, "load", load)
    model.loaded = loaded
    return model


def make_song(path, samples=1234, channels=2, sample_rate=RATE, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = noise(channels, samples)
    soundfile.write(path, sound.T, sample_rate, **({"subtype": "FLOAT"} if path.suffix == ".wav" else {}) | kwargs)
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


def separate(tmp_path, *arguments):
    out = tmp_path / "out"
    usual = ["--checkpoint", "model.ckpt", "--output", out, "--chunk-seconds", "0.25"]
    return app.main([str(argument) for argument in ("separate", *usual, *arguments)])


def written(tmp_path):
    out = tmp_path / "out"
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def read(path):
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


# --- what it writes


@pytest.mark.parametrize("name", ["song.wav", "song.flac"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [RATE, 8000])
def test_a_song_becomes_its_stems(tmp_path, model, capsys, name, channels, sample_rate):
    mixture = make_song(tmp_path / name, channels=channels, sample_rate=sample_rate)
    assert separate(tmp_path, tmp_path / name) == 0
    assert written(tmp_path) == ["song/instrumental.wav", "song/vocals.wav"]
    vocals, rest = (read(tmp_path / "out" / "song" / f"{stem}.wav") for stem in ("vocals", "instrumental"))
    assert soundfile.info(tmp_path / "out" / "song" / "vocals.wav").samplerate == sample_rate
    assert vocals.shape == rest.shape == mixture.shape
    np.testing.assert_allclose(vocals + rest, mixture, atol=3e-7)  # 24 bits each
    if sample_rate == RATE:
        np.testing.assert_allclose(vocals, 0.25 * mixture, atol=2e-7)
    out, err = capsys.readouterr()
    assert "vocals.wav, instrumental.wav" in out
    assert "x real time" in out
    assert err == ""


@pytest.mark.parametrize("name", ["song.mp3", "song.ogg"])
def test_lossy_songs_too(tmp_path, model, name):
    mixture = make_song(tmp_path / name, samples=20_000, sample_rate=44100)
    assert separate(tmp_path, tmp_path / name) == 0
    assert read(tmp_path / "out" / "song" / "vocals.wav").shape == mixture.shape


@pytest.mark.parametrize("spelling", FORMATS)
def test_every_format(tmp_path, model, spelling):
    mixture = make_song(tmp_path / "song.wav")
    assert separate(tmp_path, tmp_path / "song.wav", "--format", spelling) == 0
    encoding = audio_writer.ENCODINGS[spelling]
    path = tmp_path / "out" / "song" / f"vocals{encoding.suffix}"
    assert soundfile.info(path).subtype == encoding.subtype
    np.testing.assert_allclose(read(path), 0.25 * mixture, atol=2e-5)


def test_the_formats_offered_are_those_there_are():
    assert tuple(audio_writer.ENCODINGS) == FORMATS


def test_the_command_and_the_function_agree(tmp_path, model):
    mixture = make_song(tmp_path / "song.wav", samples=5001, sample_rate=1600)
    model.ramp = True
    arguments = ("--format", "wav32f", "--overlap", "3", "--batch-size", "2", "--tta")
    assert separate(tmp_path, tmp_path / "song.wav", *arguments) == 0
    stems = wroformer_jax.separate(
        model, model.params(0.25), mixture, sample_rate=1600, chunk_seconds=0.25, overlap=3, batch_size=2, tta=True
    )
    for name, expected in stems.items():
        np.testing.assert_array_equal(read(tmp_path / "out" / "song" / f"{name}.wav"), expected)


def test_whole_songs_and_shorter_than_a_window(tmp_path, model):
    mixture = make_song(tmp_path / "short.wav", samples=7)
    assert separate(tmp_path, tmp_path / "short.wav", "--format", "wav32f", "--chunk-seconds", "whole") == 0
    np.testing.assert_array_equal(read(tmp_path / "out" / "short" / "vocals.wav"), 0.25 * mixture)


def test_only_the_stems_asked_for(tmp_path, model):
    make_song(tmp_path / "song.wav")
    assert separate(tmp_path, tmp_path / "song.wav", "--stems", "instrumental") == 0
    assert written(tmp_path) == ["song/instrumental.wav"]


def test_a_folder_keeps_its_shape(tmp_path, model):
    for name in ("a.wav", "album/b.flac", "album/.hidden.wav", ".trash/c.wav", "album/cover.jpg", "..odd...wav"):
        path = tmp_path / "music" / name
        if path.suffix in (".wav", ".flac"):
            make_song(path)
        else:
            path.write_text("not a song")
    os.rename(tmp_path / "music" / "..odd...wav", tmp_path / "music" / "odd...wav")
    assert separate(tmp_path, tmp_path / "music", "--stems", "vocals") == 0
    assert written(tmp_path) == ["a/vocals.wav", "album/b/vocals.wav", "odd../vocals.wav"]


def test_stems_are_not_taken_for_songs_the_second_time(tmp_path, model):
    make_song(tmp_path / "song.wav")
    assert separate(tmp_path, tmp_path, "--stems", "vocals") == 0
    assert separate(tmp_path, tmp_path, "--stems", "vocals", "--overwrite") == 0
    assert written(tmp_path) == ["song/vocals.wav"]


def test_a_name_of_dots_stays_below_the_output(tmp_path, model):
    make_song(tmp_path / "music" / "...wav", format="WAV")
    assert separate(tmp_path, tmp_path / "music" / "...wav", "--stems", "vocals") == 0
    assert written(tmp_path) == ["...wav/vocals.wav"]


def test_a_name_that_is_not_utf8(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        os.rename(tmp_path / "song.wav", tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert separate(tmp_path, tmp_path / name) == 0
    assert "caf" in capsys.readouterr().out


def test_a_name_that_stdout_cannot_write(tmp_path, model, monkeypatch):
    make_song(tmp_path / "für.wav")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert separate(tmp_path, tmp_path / "für.wav") == 0
    assert b"f\\xfcr: vocals.wav" in stdout.buffer.getvalue()


def test_several_songs_load_one_checkpoint_and_compile_once(tmp_path, model):
    songs = [tmp_path / f"{name}.wav" for name in "abc"]
    for i, song in enumerate(songs):
        make_song(song, samples=500 + 300 * i)
    assert separate(tmp_path, *songs, "--config", "model.yaml") == 0
    assert len(written(tmp_path)) == 6
    assert [(source, str(config)) for source, config in model.loaded] == [("model.ckpt", "model.yaml")]
    assert len(model.traced_shapes) == 1


def test_a_clipped_stem_is_told(tmp_path, model, capsys):
    soundfile.write(tmp_path / "loud.wav", np.full((1000, 2), 8.0), RATE, subtype="FLOAT")
    assert separate(tmp_path, tmp_path / "loud.wav", "--format", "wav16") == 0
    err = capsys.readouterr().err
    assert "vocals.wav is clipped: its peak is 6.0 dB over full scale; use --format wav32f" in err
    assert read(tmp_path / "out" / "loud" / "vocals.wav").min() > 0.99
    assert separate(tmp_path, tmp_path / "loud.wav", "--format", "wav32f", "--overwrite") == 0
    assert capsys.readouterr().err == ""


def test_a_progress_bar_for_people(tmp_path, model, capsys, monkeypatch):
    make_song(tmp_path / "song.wav")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert separate(tmp_path, tmp_path / "song.wav", "-v") == 0
    err = capsys.readouterr().err
    assert "song.wav: 100%" in err
    assert "x real time" in err
    assert "model.ckpt: vocals; chunks of 0.26 s" in err


# --- what goes wrong


def test_a_bad_file_among_good_ones(tmp_path, model, capsys):
    make_song(tmp_path / "a.wav")
    make_song(tmp_path / "b.wav")
    (tmp_path / "bad.wav").write_text("text")
    bad_inside = noise(2, 3000)
    bad_inside[0, 2500] = np.nan
    soundfile.write(tmp_path / "nan.wav", bad_inside.T, RATE, subtype="FLOAT")
    names = ("a.wav", "bad.wav", "nowhere.wav", "nan.wav", "b.wav")
    assert separate(tmp_path, *(tmp_path / name for name in names), "--stems", "vocals") == 1
    assert written(tmp_path) == ["a/vocals.wav", "b/vocals.wav"]
    assert not (tmp_path / "out" / "nan").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("wroformer: error: ") for line in lines)
    for line, what in zip(lines, ("bad.wav is not audio", "nowhere.wav cannot", "nan.wav has NaN"), strict=True):
        assert what in line


def test_an_empty_folder_among_good_files(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    assert separate(tmp_path, tmp_path / "song.wav", tmp_path / "empty", "--stems", "vocals") == 1
    assert written(tmp_path) == ["song/vocals.wav"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wroformer: error: no audio files in {tmp_path / 'empty'} (looked for .wav, ")


def test_names_that_no_file_can_have(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    long, circle = tmp_path / ("x" * 300), tmp_path / "circle"
    circle.symlink_to(circle)
    assert separate(tmp_path, long) == 2
    assert separate(tmp_path, tmp_path / "song.wav", long, circle) == 1
    assert separate(tmp_path, tmp_path / "song.wav", "--output", long) == 2
    assert separate(tmp_path, tmp_path / "song.wav", "--output", circle) == 2
    name = str(long)
    assert capsys.readouterr().err.splitlines() == [
        f"wroformer: error: {name} cannot be read: File name too long",
        f"wroformer: error: {name} cannot be read: File name too long",
        f"wroformer: error: {circle} cannot be read: Too many levels of symbolic links",
        f"wroformer: error: {name}/song/vocals.wav cannot be written: File name too long",
        f"wroformer: error: {circle}/song/vocals.wav cannot be written: File exists",
    ]


def test_nothing_usable(tmp_path, model, capsys):
    assert separate(tmp_path, tmp_path / "nowhere.wav") == 2
    assert model.loaded == []  # no need to wait for a checkpoint
    (tmp_path / "empty").mkdir()
    assert separate(tmp_path, tmp_path / "empty") == 2
    assert "no audio files in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_existing_stems_are_refused_or_replaced(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    make_song(tmp_path / "other.wav")
    old = tmp_path / "out" / "song" / "vocals.wav"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    assert separate(tmp_path, tmp_path / "song.wav") == 2
    assert f"{old} exists: use --overwrite" in capsys.readouterr().err
    assert old.read_text() == "old"
    assert separate(tmp_path, tmp_path / "song.wav", tmp_path / "other.wav") == 1
    assert separate(tmp_path, tmp_path / "song.wav", "--overwrite") == 0
    assert read(old).shape == (2, 1234)


def test_two_songs_of_one_name_are_refused(tmp_path, model, capsys):
    make_song(tmp_path / "a" / "song.wav")
    make_song(tmp_path / "b" / "Song.flac")
    assert separate(tmp_path, tmp_path / "a" / "song.wav", tmp_path / "b" / "Song.flac") == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_song_named_twice_is_done_once(tmp_path, model, capsys):
    make_song(tmp_path / "a" / "song.wav")
    assert separate(tmp_path, tmp_path / "a" / "song.wav", tmp_path / "a") == 0
    assert capsys.readouterr().out.count("real time") == 1


def test_the_output_must_not_be_the_input(tmp_path, model, capsys):
    make_song(tmp_path / "out" / "song.wav")
    assert separate(tmp_path, tmp_path / "out") == 2
    assert "is input and --output" in capsys.readouterr().err


def test_a_song_is_never_replaced_by_a_stem(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    make_song(tmp_path / "out" / "song" / "vocals.wav")
    before = (tmp_path / "out" / "song" / "vocals.wav").read_bytes()
    songs = (tmp_path / "song.wav", tmp_path / "out" / "song" / "vocals.wav")
    assert separate(tmp_path, *songs, "--overwrite") == 2
    assert "vocals.wav is a song, and a stem of" in capsys.readouterr().err
    assert (tmp_path / "out" / "song" / "vocals.wav").read_bytes() == before


def test_a_bad_checkpoint_or_setting(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    assert separate(tmp_path, tmp_path / "song.wav", "--checkpoint", "missing.ckpt") == 2
    assert separate(tmp_path, tmp_path / "song.wav", "--stems", "vocals,tuba") == 2
    assert separate(tmp_path, tmp_path / "song.wav", "--chunk-seconds", "0.001") == 2
    assert capsys.readouterr().err.splitlines() == [
        "wroformer: error: missing.ckpt: no such checkpoint",
        "wroformer: error: --stems tuba: this checkpoint gives vocals, instrumental",
        "wroformer: error: chunk_seconds is 0.001, expected at least 0.064 (an STFT window, and a sample for each "
        "overlapping chunk)",
    ]
    assert separate(tmp_path, tmp_path / "song.wav", "--chunk-seconds", "1e12") == 2
    assert separate(tmp_path, tmp_path / "song.wav", "--batch-size", "1000000000000") == 2
    assert capsys.readouterr().err.splitlines() == [
        "wroformer: error: chunk_seconds is 1000000000000.0, expected at most 86400 (a day)",
        f"wroformer: error: {tmp_path / 'song.wav'}: batch_size is 1000000000000, expected at most 65536",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_checkpoint(tmp_path, capsys, suffix):
    """Nothing stands in here: the checkpoint is loaded as always."""
    make_song(tmp_path / "song.wav")
    checkpoint = tmp_path / f"model{suffix}"
    wroformer_jax.save(checkpoint, *tiny_real_model())
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    assert separate(tmp_path, tmp_path / "song.wav", "--checkpoint", checkpoint) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("wroformer: error: ")
    assert str(checkpoint) in line
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../evil", "..", "a/b", "a\\b", "c:d"])
def test_a_checkpoint_cannot_choose_where_to_write(tmp_path, model, capsys, name):
    make_song(tmp_path / "song.wav")
    model.config = dataclasses.replace(model.config, stems=(name,))
    assert separate(tmp_path, tmp_path / "song.wav") == 2
    assert "cannot be the name of a file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--chunk-seconds", "0"],
        ["--chunk-seconds", "all"],
        ["--chunk-seconds", "inf"],
        ["--overlap", "0"],
        ["--batch-size", "1.5"],
        ["--stems", "vocals,,"],
        ["--stems", "vocals,vocals"],
        ["--format", "mp3"],
        ["--no-such-option"],
    ],
)
def test_a_bad_command(tmp_path, model, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        separate(tmp_path, "song.wav", *arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


def test_no_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        app.main([])
    assert stopped.value.code == 2


def test_an_interruption_leaves_nothing_half_written(tmp_path, model, capsys, monkeypatch):
    make_song(tmp_path / "a.wav")
    make_song(tmp_path / "b.wav", samples=5000)
    original = soundfile.SoundFile.write

    def interrupt(file, samples):
        original(file, samples)
        if (tmp_path / "out" / "b").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupt)
    assert separate(tmp_path, tmp_path / "a.wav", tmp_path / "b.wav") == 130
    assert written(tmp_path) == ["a/instrumental.wav", "a/vocals.wav"]
    assert not (tmp_path / "out" / "b").exists()
    assert capsys.readouterr().err == "wroformer: interrupted\n"


def test_an_output_that_cannot_be_written(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    (tmp_path / "out").write_text("a file where the folder should be")
    assert separate(tmp_path, tmp_path / "song.wav") == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_a_disk_that_fills_up(tmp_path, model, capsys):
    make_song(tmp_path / "short.wav", samples=1000)
    make_song(tmp_path / "long.wav", samples=50_000)
    with limited_file_size(100_000):
        assert separate(tmp_path, tmp_path / "long.wav", tmp_path / "short.wav") == 1
        assert separate(tmp_path, tmp_path / "long.wav") == 2
    assert written(tmp_path) == ["short/instrumental.wav", "short/vocals.wav"]
    assert not (tmp_path / "out" / "long").exists()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"wroformer: error: {tmp_path / 'out' / 'long' / 'vocals.wav'} cannot be written (")
    assert first.endswith("make room, or choose another output folder or format")
    assert second.split(" (")[0] == first.split(" (")[0]


def test_an_error_inside_names_the_song(tmp_path, model, capsys):
    make_song(tmp_path / "song.wav")
    model.params = lambda *_: {"gains": np.full((1, 1, 1), np.nan, np.float32)}
    assert separate(tmp_path, tmp_path / "song.wav") == 2
    assert f"wroformer: error: {tmp_path / 'song.wav'}: the model's output has NaN" in capsys.readouterr().err


def test_a_traceback_only_when_asked_for(tmp_path, model, capsys):
    assert separate(tmp_path, tmp_path / "nowhere.wav") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert separate(tmp_path, tmp_path / "nowhere.wav", "--verbose") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("wroformer: error: ")


# --- the rest


def test_models_are_listed(capsys):
    assert app.main(["models"]) == 0
    out = capsys.readouterr().out
    assert "kim-melband" in out
    assert "smule-wsa" in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        app.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"wroformer {wroformer_jax.__version__}\n"


@pytest.mark.parametrize("own_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_from_a_saved_model_to_files(tmp_path, monkeypatch, own_process):
    """Nothing stands in here: a real model is saved, and loaded by the command."""
    monkeypatch.chdir(tmp_path)
    model, params = tiny_real_model()
    wroformer_jax.save(tmp_path / "model", model, params)
    mixture = make_song(tmp_path / "song.wav", samples=20_001, sample_rate=8000)
    command = ["separate", "song.wav", "--checkpoint", "model", "--output", "out"]
    options = ["--format", "wav32f", "--chunk-seconds", "1"]
    if own_process:
        program = [sys.executable, "-m", "wroformer_jax.cli"]
        done = subprocess.run([*program, *command, *options], env=of_a_program(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert app.main([*command, *options]) == 0
    expected = wroformer_jax.separate(model, params, mixture, sample_rate=8000, chunk_seconds=1.0)
    for name, stem in expected.items():
        np.testing.assert_allclose(read(tmp_path / "out" / "song" / f"{name}.wav"), stem, atol=1e-6)
    assert np.abs(expected["vocals"]).max() > 1e-4
