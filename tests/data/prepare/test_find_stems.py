"""Finding stems: split, song and stem of each file. The files need no content."""

import os

import pytest

from wroformer_jax.data.prepare.find_stems import find
from wroformer_jax.errors import InputError


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def songs(found):
    """{split: {song: stems}}"""
    result = {}
    for song in found.songs:
        result.setdefault(song.split, {})[song.name] = list(song.stems)
    return result


# --- a folder for each song


def test_musdb(tmp_path):
    for split, song in (("train", "A - One"), ("train", "B - Two"), ("test", "C - Three")):
        make(tmp_path, *(f"{split}/{song}/{stem}.wav" for stem in ("vocals", "drums", "bass", "other", "mixture")))
    found = find(tmp_path)
    stems = ["bass", "drums", "other", "vocals"]
    assert found.layout == "songs"
    assert songs(found) == {
        "train": {"A - One": stems, "B - Two": stems},
        "test": {"C - Three": ["bass", "drums", "mixture", "other", "vocals"]},
    }
    assert found.songs[0].stems["bass"] == tmp_path / "train" / "A - One" / "bass.wav"
    assert found.warnings == ()


@pytest.mark.parametrize("name", ["valid", "validation", "val", "Validation"])
def test_validation_by_any_name(tmp_path, name):
    make(tmp_path, "train/a/vocals.wav", f"{name}/b/vocals.wav", f"{name}/b/mixture.wav")
    assert songs(find(tmp_path)) == {"train": {"a": ["vocals"]}, "validation": {"b": ["mixture", "vocals"]}}


def test_without_splits_all_songs_are_to_train_on(tmp_path):
    make(tmp_path, "a/vocals.flac", "album/b/Vocals.mp3", "album/b/koto.ogg", "album/b/notes.txt", "a/.vocals.wav")
    make(tmp_path, ".trash/c/vocals.wav", "a/._drums.wav")
    assert songs(find(tmp_path)) == {"train": {"a": ["vocals"], "album/b": ["koto", "vocals"]}}


def test_a_folder_that_is_a_song(tmp_path):
    make(tmp_path / "My Song", "vocals.wav", "drums.wav")
    assert songs(find(tmp_path / "My Song")) == {"train": {"My Song": ["drums", "vocals"]}}


def test_a_song_called_test_is_no_split(tmp_path):
    make(tmp_path, "Test/vocals.wav", "Other song/vocals.wav")
    assert songs(find(tmp_path)) == {"train": {"Test": ["vocals"], "Other song": ["vocals"]}}


def test_names_with_spaces_and_other_letters(tmp_path):
    make(tmp_path, "train/Mötley & 「夜」 (live) #1/vocals.wav", "train/Beyonce\u0301/vocals.wav")
    assert list(songs(find(tmp_path))["train"]) == ["Beyoncé", "Mötley & 「夜」 (live) #1"]  # composed, NFC


def test_a_name_that_is_not_utf8(tmp_path):
    try:
        make(tmp_path, os.fsdecode(b"caf\xe9/vocals.wav"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (song,) = find(tmp_path).songs
    assert song.name == "caf\\xe9"
    assert song.stems["vocals"].exists()


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path / "elsewhere" / "a", "vocals.wav")
    data = make(tmp_path / "data" / "b", "vocals.wav").parent
    (data / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (data / "b" / "back").symlink_to(data)
    assert songs(find(data)) == {"train": {"a": ["vocals"], "b": ["vocals"]}}


def test_a_file_that_is_the_sum_of_others_is_left_out(tmp_path):
    make(tmp_path, *(f"a/{stem}.wav" for stem in ("vocals", "drums", "accompaniment", "instrumental")))
    make(tmp_path, "b/vocals.wav", "b/instrumental.wav")
    found = find(tmp_path)
    assert songs(found) == {"train": {"a": ["drums", "vocals"], "b": ["instrumental", "vocals"]}}
    assert found.songs[0].notes == (
        "left out: instrumental, the sum of other stems",
        "left out: accompaniment, the sum of other stems",
    )
    assert found.songs[1].notes == ()


def test_songs_with_nothing_but_a_mixture_are_told(tmp_path):
    make(tmp_path, "train/a/mixture.wav", "train/b/vocals.wav", "test/c/mixture.wav")
    found = find(tmp_path)
    assert songs(found) == {"train": {"b": ["vocals"]}}
    assert found.warnings == ("left out, because they have no stem but a mixture: 2 songs (a, c)",)


def test_files_beside_the_splits_are_told(tmp_path):
    make(tmp_path, "train/a/vocals.wav", "train/loose.wav", "more/b/vocals.wav", "jingle.wav")
    found = find(tmp_path)
    assert songs(found) == {"train": {"a": ["vocals"]}}
    assert found.warnings == (
        "left out, because they lie beside the folders of the splits: 2 files (jingle.wav, more/b/vocals.wav)",
        "left out, because they lie in no song's folder: 1 file (train/loose.wav)",
    )


def test_the_same_song_to_train_and_to_test_on_is_told(tmp_path):
    make(tmp_path, "train/A song/vocals.wav", "test/a Song/vocals.wav", "valid/b/vocals.wav", "test/c/vocals.wav")
    (warning,) = find(tmp_path).warnings
    assert warning == "in train and in test, by their names, so that scores will be too good: 1 song (A song)"


def test_names_that_differ_by_case_are_two_songs(tmp_path):
    try:
        make(tmp_path, "Abc/vocals.wav", "abc/vocals.wav")
    except FileExistsError:
        pytest.skip("this file system does not tell a from A")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell a from A")
    assert list(songs(find(tmp_path))["train"]) == ["Abc", "abc"]


# --- a folder for each stem


def test_files_of_one_name_in_several_folders_are_one_song(tmp_path):
    make(tmp_path, "vocals/a.wav", "drums/a.flac", "drums/album/b.wav", "koto/c.wav", "loose.wav")
    found = find(tmp_path)
    assert found.layout == "stems"
    assert songs(found) == {"train": {"a": ["drums", "vocals"], "album/b": ["drums"], "c": ["koto"]}}
    assert found.warnings == ("left out, because they lie in no stem's folder: 1 file (loose.wav)",)


def test_stem_folders_in_splits(tmp_path):
    make(tmp_path, "train/Vocals/x.wav", "train/mixture/x.wav", "test/vocals/y.wav", "test/mixture/y.wav")
    assert songs(find(tmp_path)) == {"train": {"x": ["vocals"]}, "test": {"y": ["mixture", "vocals"]}}


def test_a_name_in_two_forms_of_unicode_is_one_song(tmp_path):
    make(tmp_path, "vocals/Beyonc\u00e9.wav", "drums/Beyonce\u0301.wav")
    assert songs(find(tmp_path)) == {"train": {"Beyonc\u00e9": ["drums", "vocals"]}}


# --- which of the two it is


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["Song/vocals.wav", "Song/koto.wav"], "songs"),
        (["Music/vocals.wav", *(f"Song {i}/vocals.wav" for i in range(5))], "songs"),
        (["vocals/1.wav", "koto/1.wav"], "stems"),
        (["vocals/bass.wav", *(f"vocals/{i}.wav" for i in range(8))], "stems"),
    ],
)
def test_the_layout_is_told_by_the_names(tmp_path, files, layout):
    assert find(make(tmp_path, *files)).layout == layout


@pytest.mark.parametrize(
    "files", [["a/koto.wav", "a/oud.wav", "b/koto.wav"], ["vocals/vocals.wav"], ["drums/bass.wav"]]
)
def test_when_names_do_not_tell_the_layout_is_asked_for(tmp_path, files):
    make(tmp_path, *files)
    with pytest.raises(
        InputError, match=r"has the folders .*: say which they are, --layout songs .* or --layout stems"
    ):
        find(tmp_path)
    assert find(tmp_path, "songs").layout == "songs"
    assert find(tmp_path, "stems").layout == "stems"


# --- a table


def test_a_table_of_files(tmp_path):
    table = make(tmp_path, "stems/a.wav") / "stems.csv"
    table.write_text(f"instrum,path\nVocals,stems/a.wav\ndrums,stems/b.wav\nbass,{tmp_path}/far/c.wav\n")
    found = find(table)
    assert found.layout == "csv"
    assert songs(found) == {
        "train": {f"{tmp_path}/far/c": ["bass"], "stems/a": ["vocals"], "stems/b": ["drums"]},
    }
    assert found.songs[1].stems["vocals"] == tmp_path / "stems" / "a.wav"


def test_a_table_with_songs_and_splits(tmp_path):
    table = tmp_path / "stems.tsv"
    table.write_text(
        "\ufeffsplit, song, path, instrum\n"
        'train,"One, two",1.wav,vocals\n,"One, two",2.wav,drums\ntest,Three,3.wav,mixture\nTest,Three,4.wav,vocals\n'
        "valid,Four,5.wav,vocals\n",
        encoding="utf-8",
    )
    assert songs(find(table, "csv")) == {
        "train": {"One, two": ["drums", "vocals"]},
        "validation": {"Four": ["vocals"]},
        "test": {"Three": ["mixture", "vocals"]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column instrum nor path: expected the header instrum,path and found nothing"),
        ("stem,path\nvocals,a.wav\n", "has no column instrum: expected the header instrum,path and found stem,path"),
        ("instrum,path\n", "has no stems to prepare: found no files, and nothing else"),
        ("instrum,path\nvocals,a.wav\n,b.wav\n", "line 3, has no instrum"),
        ("instrum,path\nvocals\n", "line 2, has no path"),
        ("instrum,path\nvocals,a,b.wav\n", "line 2, has more cells than columns"),
        ("instrum,path\nvocals,a\0.wav\n", "line 2, has a null character"),
        (
            "instrum,path,split\nvocals,a.wav,dev\n",
            "line 2: the split is 'dev', expected one of train, validation, test",
        ),
        ("instrum,path\nvocals,a.wav\nvocals,./a.wav\n", "has .*a.wav twice, as vocals and as vocals"),
        ("instrum,path\nvocals,a.wav\ndrums,a.wav\n", "has .*a.wav twice, as vocals and as drums"),
        (
            "instrum,path,song\nvocals,a.wav,x\nVocals,b.wav,x\n",
            "a.wav and .*b.wav are both the stem vocals of the song x: keep one",
        ),
        ("instrum,path,song\nmixture,a.wav,x\n", "has no stems to prepare: found mixture, and nothing else"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "stems.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find(tmp_path / "stems.csv")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "stems.csv").write_bytes(b"instrum,path\nvocals,caf\xe9.wav\n")
    with pytest.raises(InputError, match=r"cannot be read as a CSV file, save it anew as UTF-8"):
        find(tmp_path / "stems.csv")


# --- nothing to be found


def test_folders_without_stems(tmp_path):
    with pytest.raises(InputError, match=r"no audio files in .*: it has no files, looked for \.wav, \.flac"):
        find(tmp_path)
    make(tmp_path, "a.stem.mp4", "b.stem.mp4", "README", "sub/c.txt")
    with pytest.raises(InputError, match=r"it has 2 \.mp4, 1 files without an ending, 1 \.txt, looked for"):
        find(tmp_path)
    make(tmp_path, "train/a/mixture.wav")
    with pytest.raises(InputError, match="has no stems to prepare: found mixture, and nothing else"):
        find(tmp_path)


def test_two_files_for_one_stem(tmp_path):
    make(tmp_path, "a/vocals.wav", "a/Vocals.flac")
    with pytest.raises(InputError, match=r"a/Vocals.flac and .*a/vocals.wav are both the stem vocals of the song a"):
        find(tmp_path)


def test_one_name_in_two_folders_of_a_split(tmp_path):
    make(tmp_path, "valid/a/vocals.wav", "val/a/vocals.wav")
    with pytest.raises(InputError, match="are both the stem vocals of the song a"):
        find(tmp_path)


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist: expected a folder of stems, or a \.csv file"):
        find(tmp_path / "nowhere")
    song = make(tmp_path, "song.wav") / "song.wav"
    with pytest.raises(InputError, match=r"song\.wav is not one: expected a folder of stems, or a \.csv file"):
        find(song)
    with pytest.raises(InputError, match="is not one: expected a folder with --layout songs"):
        find(song, "songs")
    with pytest.raises(InputError, match=r"expected a \.csv file"):
        find(tmp_path, "csv")
    with pytest.raises(InputError, match="is not a local path: copy the stems to a disk first"):
        find("gs://bucket/stems")


def test_a_folder_that_cannot_be_read(tmp_path):
    make(tmp_path, "a/vocals.wav", "b/vocals.wav")
    (tmp_path / "b").chmod(0)
    try:
        if os.access(tmp_path / "b", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(InputError, match="b cannot be read: Permission denied"):
            find(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_a_layout_that_names_speak_against_is_warned_of(tmp_path):
    make(tmp_path, "vocals/a.wav", "vocals/b.wav", "drums/a.wav", "drums/b.wav")
    assert find(tmp_path, "songs").warnings[0] == "--layout songs, though by their names these are 'stems'"
    assert not find(tmp_path, "stems").warnings


def test_a_set_is_not_prepared_again(tmp_path):
    for name in ("index.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="is a prepared set already"):
        find(tmp_path)
