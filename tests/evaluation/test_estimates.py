"""Which stems are scored, and the estimates of other tools."""

import numpy as np
import pytest
from support.evaluated_songs import RATE, evaluate, kept, make_song, score, sound, write
from support.separation_models import GainModel

from wroformer_jax.evaluation import estimates, metrics


def test_the_rest_is_scored_only_beside_vocals_or_instrumental():
    assert estimates.offered_stems(GainModel(stems=("drums",)).config) == ("drums",)
    assert estimates.offered_stems(GainModel(stems=("instrumental",)).config) == ("instrumental", "vocals")
    assert estimates.offered_stems(GainModel(stems=("vocals", "drums")).config) == ("vocals", "drums")


def test_vocals_and_other_warn_if_songs_have_more_stems(tmp_path, capsys):
    make_song(tmp_path / "data" / "Song", stems=("vocals", "drums", "other"))
    make_song(tmp_path / "estimates" / "Song", 3, stems=("vocals", "other"))
    assert score(tmp_path) == 0
    assert "warning: the songs also have drums, but the estimates are only vocals and other" in capsys.readouterr().err
    assert score(tmp_path, "--stems", "vocals", "--output", tmp_path / "vocals.json") == 0
    (tmp_path / "data" / "Song" / "drums.wav").unlink()
    assert score(tmp_path, "--output", tmp_path / "both.json") == 0
    assert "warning" not in capsys.readouterr().err


def test_no_target_stem_anywhere(tmp_path, model, data, capsys):
    for path in data.rglob("vocals.wav"):
        path.unlink()
    assert evaluate(tmp_path, "--stems", "vocals") == 2
    assert "no song has the stem vocals: the songs have bass, drums" in capsys.readouterr().err
    assert evaluate(tmp_path, "--stems", "guitar") == 2
    assert "--stems guitar: only these stems have estimates: vocals, instrumental" in capsys.readouterr().err


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
    assert "--stems bass: only these stems have estimates: drums, vocals" in capsys.readouterr().err


def test_missing_estimates_are_named_and_the_other_songs_scored(tmp_path, data, capsys):
    make_song(tmp_path / "estimates" / "Song 0", 3)
    make_song(tmp_path / "estimates" / "Song 1", 4, stems=("vocals",))
    assert score(tmp_path) == 1
    assert list(kept(tmp_path)["songs"]) == ["Song 0"]
    err = capsys.readouterr().err
    assert "Song 1 has no estimate of bass: expected bass.wav" in err
    assert f"{tmp_path / 'estimates' / 'Song 2'} is missing" in err
    assert "2 of 3 songs could not be scored" in err


def test_estimates_are_padded_or_cut_to_the_song_with_a_note(tmp_path, capsys):
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
