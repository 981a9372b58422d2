"""Songs in folders: how they are found and named, and what is refused."""

import os

import pytest
from support.evaluated_songs import evaluate, kept, make_song, score, sound, write

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import songs


def test_names_with_spaces_and_letters_of_all_kinds(tmp_path, model, capsys):
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


def test_one_name_in_two_forms_of_unicode_is_refused(tmp_path):
    for name in ("Ä", "A\u0308"):
        make_song(tmp_path / "data" / name, 0)
    if len(list((tmp_path / "data").iterdir())) == 1:
        pytest.skip("this file system does not tell one form from the other")
    with pytest.raises(InputError, match="are the same name in two forms of Unicode: rename one of them"):
        songs.find_songs(tmp_path / "data")


def test_a_name_is_the_same_in_composed_and_decomposed_letters(tmp_path):
    """As Linux and as a Mac write it."""
    composed, decomposed = "Ame\u0301lie", "Am\u00e9lie"
    make_song(tmp_path / "data" / composed)
    make_song(tmp_path / "estimates" / composed, 3)
    assert score(tmp_path) == 0
    assert list(kept(tmp_path)["songs"]) == [decomposed]


def test_folders_of_stems_are_refused(tmp_path):
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


def test_two_files_for_one_stem(tmp_path, model, data, capsys):
    write(data / "test" / "Song 1" / "vocals.flac", sound(0))
    assert evaluate(tmp_path) == 2
    assert "vocals.flac and vocals.wav are both the stem vocals" in capsys.readouterr().err
