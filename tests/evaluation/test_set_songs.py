"""Songs of prepared sets: their scores equal those of the files from which the set was prepared."""

import json

import numpy as np
import pytest
import soundfile
from support.fake_bucket import fake_storage
from support.tiny_set import RATE, make_set, noise

from wroformer_jax.cli import app
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.set_songs import find_set_songs


def write(path, audio):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, RATE, subtype="PCM_16")


def evaluate(*arguments):
    return app.main(["evaluate", *map(str, arguments)])


def songs_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["songs"]


@pytest.fixture
def songs():
    """Songs of several segments and unequal lengths: one has a mixture, one has neither vocals nor drums."""
    songs = {
        "Élan vital": {stem: noise((0, i), 3.6) for i, stem in enumerate(("bass", "drums", "mixture", "vocals"))},
        "album/b": {stem: noise((1, i), 2 + i / 4) for i, stem in enumerate(("bass", "drums", "vocals"))},
        "album/c": {"bass": noise((2, 0), 1.2)},
    }
    songs["album/b"]["drums"][:, RATE : 2 * RATE] = 0
    return songs


@pytest.fixture
def twice(tmp_path, songs):
    """The same songs as a prepared set and as files."""
    make_set(tmp_path / "set", songs, "test")
    for name, stems in songs.items():
        for stem, audio in stems.items():
            write(tmp_path / "files" / "test" / name / f"{stem}.wav", audio)
    return tmp_path


@pytest.fixture(autouse=True)
def with_ramp(model):
    """Shows how chunks are put together."""
    model.ramp = True


@pytest.mark.parametrize("by", ["record_writer", "wroformer prepare"])
def test_scores_equal_those_of_the_files(twice, model, by):
    if by == "wroformer prepare":
        options = ("--sample-rate", str(RATE), "--segment-seconds", "1", "--workers", "1", "--overwrite")
        assert app.main(["prepare", str(twice / "files"), "--output", str(twice / "set"), *options]) == 0
    model_options = ("--checkpoint", "model.ckpt", "--chunk-seconds", 0.25)
    for data in ("set", "files"):
        options = ("--output", twice / f"{data}.json", "--save-stems", twice / f"stems of {data}")
        assert evaluate("--data", twice / data, *model_options, *options) == 0
    from_set, from_files = (songs_of(twice / f"{data}.json") for data in ("set", "files"))
    assert list(from_set) == list(from_files) == ["album/b", "album/c", "Élan vital"]
    for song, expected in from_files.items():
        assert from_set[song]["stems"] == expected["stems"]
        assert from_set[song]["seconds"] == expected["seconds"]
        for stem in ("vocals", "instrumental"):
            wavs = [twice / f"stems of {data}" / song / f"{stem}.wav" for data in ("set", "files")]
            np.testing.assert_array_equal(*(soundfile.read(wav, dtype="float32")[0] for wav in wavs))
    assert from_set["album/c"]["stems"]["vocals"]["usdr"] is None
    assert from_set["Élan vital"]["stems"]["vocals"]["usdr"] is not None


@pytest.mark.parametrize("encoding", ["lossless", "int16", "float32"])
def test_a_song_is_read_as_it_was_stored(tmp_path, songs, encoding):
    make_set(tmp_path, songs, "test", encoding=encoding)
    found = {song.name: song for song in find_set_songs(tmp_path)}
    song, stored = found["album/b"], songs["album/b"]
    assert song.shape.samples == 2.5 * RATE
    padded = {stem: np.pad(audio, ((0, 0), (0, 2500 - audio.shape[-1]))) for stem, audio in stored.items()}
    np.testing.assert_array_equal(np.concatenate([*song.reference("drums")], axis=-1), padded["drums"])
    instrumental = padded["bass"] + padded["drums"]
    np.testing.assert_array_equal(np.concatenate([*song.reference("instrumental")], axis=-1), instrumental)
    np.testing.assert_array_equal(np.concatenate([*song.mixture()], axis=-1), instrumental + padded["vocals"])
    assert [block.shape for block in song.reference("guitar")] == [(2, RATE), (2, RATE), (2, RATE // 2)]
    assert not any(np.any(block) for block in song.reference("guitar"))
    assert song.has("Drums")
    assert not song.has("mixture")
    own = found["Élan vital"]
    np.testing.assert_array_equal(np.concatenate([*own.mixture()], axis=-1), songs["Élan vital"]["mixture"])
    assert own.stems == ["bass", "drums", "vocals"]


def test_estimates_of_another_tool(twice, songs, capsys):
    for name, stems in songs.items():
        for stem in ("bass", "drums"):
            write(twice / "estimates" / name / f"{stem}.wav", 0.5 * stems.get(stem, stems["bass"]))
    for data in ("set", "files"):
        output = ("--output", twice / f"{data}.json")
        assert evaluate("--data", twice / data, "--estimates", twice / "estimates", *output) == 0
    from_set, from_files = (songs_of(twice / f"{data}.json") for data in ("set", "files"))
    assert all(from_set[song]["stems"] == from_files[song]["stems"] for song in from_files)
    assert from_set["Élan vital"]["stems"]["bass"]["usdr"] == pytest.approx(20 * np.log10(2), abs=0.01)
    capsys.readouterr()
    assert evaluate("--compare", twice / "set.json", twice / "files.json") == 0
    assert "+0.00" in capsys.readouterr().out


def test_a_set_in_a_bucket(twice, model, monkeypatch):
    options = ("--checkpoint", "m", "--chunk-seconds", 0.25)
    assert evaluate("--data", twice / "set", *options, "--output", twice / "local.json") == 0
    monkeypatch.setenv("WROFORMER_CACHE", str(twice / "cache"))
    with fake_storage(monkeypatch, "bucket") as storage:
        for path in (twice / "set").iterdir():
            storage.objects["bucket", f"my/set/{path.name}"] = path.read_bytes()
        assert evaluate("--data", "gs://bucket/my/set", *options, "--output", twice / "r.json") == 0
    assert songs_of(twice / "r.json") == songs_of(twice / "local.json")
    assert json.loads((twice / "r.json").read_text())["settings"]["data"] == "gs://bucket/my/set"


def test_a_set_that_was_prepared_again_is_scored_again(twice, model, songs, capsys):
    options = ("--checkpoint", "m", "--chunk-seconds", 0.25, "--data", twice / "set", "--output", twice / "r.json")
    assert evaluate(*options) == 0
    before = songs_of(twice / "r.json")
    capsys.readouterr()
    assert evaluate(*options) == 0
    assert "[" not in capsys.readouterr().err  # no song was scored
    songs["album/c"]["bass"] = songs["album/c"]["bass"] / 2
    make_set(twice / "set", songs, "test")
    assert evaluate(*options) == 0
    assert "[3/3]" in capsys.readouterr().err
    assert songs_of(twice / "r.json") != before


def test_notes_of_preparing_are_kept_with_the_scores(twice, model):
    path = twice / "set" / "index.json"
    index = json.loads(path.read_text())
    index["splits"]["test"]["songs"][0]["notes"] = ["drums was mono"]
    path.write_text(json.dumps(index))
    options = ("--checkpoint", "m", "--chunk-seconds", 0.25, "--output", twice / "r.json")
    assert evaluate("--data", twice / "set", *options) == 0
    assert songs_of(twice / "r.json")["Élan vital"]["notes"] == ["drums was mono"]


def test_a_damaged_record_loses_only_its_song(twice, model, capsys):
    (shard,) = (twice / "set").glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    content[10_000:14_000] = bytes(4000)  # in the first song
    shard.write_bytes(content)
    options = ("--checkpoint", "m", "--chunk-seconds", 0.25, "--output", twice / "r.json")
    assert evaluate("--data", twice / "set", *options) == 1
    err = capsys.readouterr().err
    assert f"{shard} cannot be read" in err
    assert "of Élan vital" in err
    assert list(songs_of(twice / "r.json")) == ["album/b", "album/c"]


def test_sets_that_cannot_be_evaluated(tmp_path, model, songs, capsys):
    make_set(tmp_path / "train", songs)
    assert evaluate("--checkpoint", "m", "--data", tmp_path / "train") == 2
    assert "has no split 'test', only train" in capsys.readouterr().err
    make_set(tmp_path / "begun", songs, "test")
    (tmp_path / "begun" / "index.json").unlink()
    assert evaluate("--checkpoint", "m", "--data", tmp_path / "begun") == 2
    assert "is not whole: its preparation was interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../up", "/root", "a/../../b", "."])
def test_names_that_would_leave_the_folder_of_the_stems_are_refused(tmp_path, name):
    make_set(tmp_path, {name: {"vocals": noise(0, 1)}}, "test")
    with pytest.raises(InputError, match="cannot be the name of a folder"):
        find_set_songs(tmp_path)
