"""Preparing sets: the stored samples, the reports on bad files, and synthetic songs."""

import numpy as np
import pytest
import soundfile
from support.preparing import SHARD_SECONDS, damaged_songs, interrupt_before_publishing, read, run, run_long
from support.separation_models import tone
from support.stems_on_disk import RATE, damage, files_of, make_song, sound, write

from wroformer_jax.data.prepare import shards, staging
from wroformer_jax.data.prepare.find_stems import find
from wroformer_jax.data.prepare.write import BadFiles, prepare_synthetic
from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.data.record_writer import Storage
from wroformer_jax.data.synthetic.song import synthesise_song
from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import resample_blocks

SECOND = RATE


# --- what is stored


def test_a_set_has_the_samples_of_its_files(tmp_path, data):
    prepared, said = run(data, tmp_path / "set")
    record_set = RecordSet.open(tmp_path / "set")
    assert record_set.splits == ("train", "test")
    assert record_set.stems == ("drums", "vocals")
    assert [song.name for song in record_set.songs("train")] == [f"Song {index}" for index in range(4)]
    for split, index in [("train", 0), ("train", 3), ("test", 4)]:
        for stem in ("vocals", "drums"):
            expected = soundfile.read(data / split / f"Song {index}" / f"{stem}.wav", dtype="float32")[0].T
            np.testing.assert_array_equal(read(record_set, split, f"Song {index}", stem), expected)
    assert np.any(read(record_set, "test", "Song 4", "mixture"))
    assert prepared.skipped == ()
    assert "inspecting 11 files of 5 songs (layout 'songs')" in said
    assert not (tmp_path / "set" / staging.FOLDER).exists()


def test_the_set_does_not_depend_on_who_wrote_it(tmp_path, long_songs):
    run_long(long_songs, tmp_path / "one", workers=1)
    run_long(long_songs, tmp_path / "two", workers=2)
    names = files_of(tmp_path / "one")
    assert sum("array_record" in name for name in names) == 5
    assert files_of(tmp_path / "two") == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".aiff"])
def test_every_kind_of_file(tmp_path, suffix):
    write(tmp_path / "data" / "a" / f"vocals{suffix}", tone(2, 30_000, 44100), 44100)
    run(tmp_path / "data", tmp_path / "set", sample_rate=44100)
    stored = read(RecordSet.open(tmp_path / "set"), "train", "a", "vocals")
    expected = soundfile.read(tmp_path / "data" / "a" / f"vocals{suffix}", dtype="float32", always_2d=True)[0].T
    np.testing.assert_allclose(stored, expected, atol=2.0**-23)


def test_mono_becomes_stereo(tmp_path):
    audio = write(tmp_path / "data" / "a" / "vocals.wav", sound(3000, channels=1))
    run(tmp_path / "data", tmp_path / "set")
    stored = read(RecordSet.open(tmp_path / "set"), "train", "a", "vocals")
    np.testing.assert_array_equal(stored, np.repeat(audio, 2, axis=0))


def test_a_missing_stem_is_silence(tmp_path):
    make_song(tmp_path / "data" / "a", stems=("vocals",))
    make_song(tmp_path / "data" / "b", stems=("vocals", "bass"))
    run(tmp_path / "data", tmp_path / "set")
    record_set = RecordSet.open(tmp_path / "set")
    assert record_set.stems == ("bass", "vocals")
    assert not np.any(read(record_set, "train", "a", "bass"))


def test_stems_of_different_lengths_are_padded_and_reported(tmp_path):
    short = write(tmp_path / "data" / "a" / "vocals.wav", sound(1234))
    write(tmp_path / "data" / "a" / "drums.wav", sound(2000))
    prepared, _ = run(tmp_path / "data", tmp_path / "set")
    stored = read(RecordSet.open(tmp_path / "set"), "train", "a", "vocals")
    np.testing.assert_array_equal(stored, np.pad(short, ((0, 0), (0, 766))))
    (song,) = RecordSet.open(tmp_path / "set").songs("train")
    assert song.notes == ("padded: vocals by 766 samples",)
    assert "1 song had stems of different lengths: the shorter are padded with silence" in prepared.summary()


def test_stems_of_different_rates_are_resampled_and_reported(tmp_path):
    original = write(tmp_path / "data" / "a" / "vocals.wav", tone(2, 22_050, 22_050), 22_050, subtype="FLOAT")
    write(tmp_path / "data" / "a" / "drums.wav", sound(SECOND))
    prepared, _ = run(tmp_path / "data", tmp_path / "set")
    stored = read(RecordSet.open(tmp_path / "set"), "train", "a", "vocals")
    expected = np.concatenate(list(resample_blocks([original], 22_050, RATE)), axis=1)
    np.testing.assert_allclose(stored, expected, atol=2.0**-23)
    assert np.abs(stored - tone(2, SECOND, RATE)).max() < 1e-3
    (song,) = RecordSet.open(tmp_path / "set").songs("train")
    assert song.notes == ("resampled: vocals from 22050 Hz",)
    assert "1 song had files of another sample rate: they are resampled" in prepared.summary()


def test_names_with_spaces_and_other_letters(tmp_path):
    name = "Mötley & 「夜」 (live) #1"
    audio = make_song(tmp_path / "my däta" / "train" / name)
    run(tmp_path / "my däta", tmp_path / "mein Sätz")
    np.testing.assert_array_equal(
        read(RecordSet.open(tmp_path / "mein Sätz"), "train", name, "vocals"), audio["vocals"]
    )


def test_a_table_of_files(tmp_path):
    audio = make_song(tmp_path / "stems")
    (tmp_path / "stems.csv").write_text("instrum,path\nvocals,stems/vocals.wav\ndrums,stems/drums.wav\n")
    run(tmp_path / "stems.csv", tmp_path / "set")
    np.testing.assert_array_equal(
        read(RecordSet.open(tmp_path / "set"), "train", "stems/drums", "drums"), audio["drums"]
    )


@pytest.mark.parametrize("encoding", ["int16", "float32"])
def test_the_other_encodings(tmp_path, encoding):
    audio = make_song(tmp_path / "data" / "a")
    run(tmp_path / "data", tmp_path / "set", encoding=encoding)
    record_set = RecordSet.open(tmp_path / "set")
    assert record_set.encoding == encoding
    np.testing.assert_array_equal(read(record_set, "train", "a", "vocals"), audio["vocals"])


def test_songs_are_held_in_shards_of_some_minutes(tmp_path):
    for index in range(40):
        write(tmp_path / "data" / "vocals" / f"{index:02}.wav", np.zeros((1, 10 * RATE), np.float32))
    prepared, _ = run(tmp_path / "data", tmp_path / "set", layout="stems")
    assert [len(part["songs"]) for part in prepared.splits["train"]] == [6] * 6 + [4]  # a minute each


def test_the_table(tmp_path):
    half = np.concatenate([sound(10 * SECOND), np.zeros((2, 10 * SECOND), np.float32)], axis=1)
    write(tmp_path / "data" / "train" / "a" / "vocals.wav", half)
    write(tmp_path / "data" / "train" / "a" / "drums.wav", sound(20 * SECOND))
    write(tmp_path / "data" / "train" / "b" / "drums.wav", sound(16 * SECOND))
    make_song(tmp_path / "data" / "test" / "c", stems=("vocals", "mixture"))
    prepared, _ = run(tmp_path / "data", tmp_path / "set")
    assert prepared.rows() == [
        ("split", "stem", "songs", "hours", "silent"),
        ("train", "", "2", "0.01", ""),
        ("", "drums", "2", "0.01", "0.0%"),
        ("", "vocals", "1", "0.01", "50.0%"),
        ("test", "", "1", "0.00", ""),
        ("", "vocals", "1", "0.00", "0.0%"),
        ("", "mixture", "1", "0.00", "0.0%"),
    ]
    size = next(prepared.summary())
    assert size.startswith(f"{tmp_path / 'set'}: ")
    assert size.endswith(" MB in 2 shards; lossless, 8000 Hz, segments of 1 s")


# --- bad files


def test_every_bad_file_is_named_before_anything_is_written(tmp_path, data):
    (data / "train" / "Song 1" / "vocals.wav").write_text("text")
    whole = (data / "train" / "Song 3" / "drums.wav").read_bytes()
    (data / "train" / "Song 3" / "drums.wav").write_bytes(whole[: len(whole) // 2])
    (data / "test" / "Song 4" / "mixture.wav").write_bytes(b"")
    with pytest.raises(BadFiles, match="3 files of 3 songs cannot be used; nothing was written to") as caught:
        run(data, tmp_path / "out" / "set")
    assert [reason.split(": ")[0].removeprefix(f"{data}/") for reason in caught.value.reasons] == [
        "train/Song 1/vocals.wav is not audio that can be read",
        "train/Song 3/drums.wav is truncated",
        "test/Song 4/mixture.wav is empty (0 bytes)",
    ]
    assert not (tmp_path / "out").exists()


def test_songs_with_bad_files_are_left_out_whole(tmp_path, data):
    (data / "train" / "Song 1" / "vocals.wav").write_text("text")
    prepared, _ = run(data, tmp_path / "set", skip_bad=True)
    assert [song.name for song in RecordSet.open(tmp_path / "set").songs("train")] == ["Song 0", "Song 2", "Song 3"]
    ((name, reason),) = prepared.skipped
    assert name == "Song 1"
    assert "vocals.wav is not audio" in reason
    assert list(prepared.summary())[-1] == "1 song skipped for bad files: Song 1"


@pytest.fixture
def damaged(tmp_path):
    """Damaged songs that share a shard with whole ones."""
    return damaged_songs(tmp_path / "data", 20)


def test_files_that_decode_half_way_are_named(tmp_path, damaged):
    with pytest.raises(BadFiles, match="2 files of 2 songs cannot be used; the rest is written") as caught:
        run(damaged, tmp_path / "set")
    first, second = caught.value.reasons
    assert "Song 1/drums.flac is damaged at " in first
    assert "Song 3/vocals.flac is damaged at " in second
    assert not is_set(tmp_path / "set")


def test_songs_that_decode_half_way_are_left_out_whole(tmp_path, damaged):
    prepared, _ = run(damaged, tmp_path / "set", skip_bad=True)
    record_set = RecordSet.open(tmp_path / "set")
    assert [song.name for song in record_set.songs("train")] == ["Song 0", "Song 2"]
    assert [name for name, _ in prepared.skipped] == ["Song 1", "Song 3"]
    expected = soundfile.read(damaged / "Song 2" / "drums.flac", dtype="float32")[0].T
    np.testing.assert_array_equal(read(record_set, "train", "Song 2", "drums"), expected)


def test_samples_that_are_no_audio(tmp_path, data):
    for index, value in ((1, np.nan), (2, 1e30)):
        audio = sound(3 * SECOND)
        audio[1, 2 * SECOND] = value
        write(data / "train" / f"Song {index}" / "vocals.wav", audio, subtype="FLOAT")
    prepared, _ = run(data, tmp_path / "set", skip_bad=True)
    (first, nan), (second, loud) = prepared.skipped
    assert (first, second) == ("Song 1", "Song 2")
    assert "vocals.wav has NaN or infinite samples" in nan
    assert "vocals.wav has samples above 1.84467e+19 times full scale" in loud


def test_what_was_finished_before_a_bad_file_is_kept(tmp_path):
    songs = damaged_songs(tmp_path / "data", SHARD_SECONDS // 2)
    with pytest.raises(BadFiles, match=r"the rest is written \(2 of 4 shards\)"):
        run(songs, tmp_path / "set")
    for name in ("Song 1/drums", "Song 3/vocals"):
        write(songs / f"{name}.flac", sound(30 * RATE))
    prepared, said = run(songs, tmp_path / "set")
    assert "goes on with 2 of 4 shards" in said
    assert len(list(prepared.songs("train"))) == 4


def test_songs_that_were_skipped_once_are_not_forgotten(tmp_path):
    songs = damaged_songs(tmp_path / "data", SHARD_SECONDS // 2)
    with pytest.raises(KeyboardInterrupt):
        run(songs, tmp_path / "set", skip_bad=True, say=interrupt_before_publishing)
    with pytest.raises(BadFiles, match=r"2 files of 2 songs"):
        run(songs, tmp_path / "set")
    prepared, said = run(songs, tmp_path / "set", skip_bad=True)
    assert "goes on with 4 of 4 shards" in said
    assert [name for name, _ in prepared.skipped] == ["Song 1", "Song 3"]
    assert len(prepared.splits["train"]) == 2


def test_no_song_is_left(tmp_path, damaged):
    make_song(tmp_path / "bad" / "a", suffix=".flac", stems=("vocals",), samples=20 * RATE)
    damage(tmp_path / "bad" / "a" / "vocals.flac")
    with pytest.raises(BadFiles, match="no song is left"):
        run(tmp_path / "bad", tmp_path / "set", skip_bad=True)
    (tmp_path / "bad" / "a" / "vocals.flac").write_text("")
    with pytest.raises(BadFiles, match="no song is left"):
        run(tmp_path / "bad", tmp_path / "other", skip_bad=True)
    assert not (tmp_path / "other").exists()


def test_a_file_that_changes_while_it_is_prepared(tmp_path):
    """It becomes shorter after it was inspected."""
    make_song(tmp_path / "data" / "Song 0")
    (found,) = find(tmp_path / "data").songs
    song = shards.InspectedSong(found, {stem: shards.SourceFile.inspect(path) for stem, path in found.stems.items()})
    storage = Storage(sample_rate=RATE, segment_seconds=1)
    (unit,) = shards.plan({"train": [song]}, storage)
    write(found.stems["vocals"], sound(100))
    written = shards.write_unit(unit, lambda seconds: None, storage=storage, folder=str(tmp_path), skip_bad=False)
    assert [song["notes"] for song in written.part["songs"]] == [["padded: vocals by 15900 samples"]]


# --- synthetic songs


def test_synthetic_songs(tmp_path):
    prepare_synthetic(
        tmp_path / "set", train_songs=2, test_songs=1, seconds=1.5, sample_rate=16000, seed=3, segment_seconds=1
    )
    record_set = RecordSet.open(tmp_path / "set")
    assert [song.name for song in record_set.songs("train")] == [f"synthetic-3-train-0000{index}" for index in range(2)]
    for split, number, index in (("train", 0, 1), ("test", 1, 0)):
        expected = synthesise_song((3, number, index), 1.5, 16000)
        for stem, audio in expected.items():
            stored = read(record_set, split, f"synthetic-3-{split}-0000{index}", stem)
            np.testing.assert_allclose(stored, audio, atol=2.0**-24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 8000}, "sample_rate is 8000, expected at least 16000 Hz"),
        ({"seconds": 0.0}, "seconds is 0.0, expected a length above zero"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"train_songs": 0, "test_songs": 0}, "expected at least one song"),
        ({"seed": -1}, "seed -1: expected"),
        ({"encoding": "mp3"}, "encoding is 'mp3'"),
        ({"segment_seconds": 0}, "segment_seconds is 0"),
    ],
)
def test_synthetic_songs_that_cannot_be(tmp_path, settings, message):
    usual = {"train_songs": 1, "test_songs": 1, "seconds": 1.0, "sample_rate": 16000}
    with pytest.raises(InputError, match=message):
        prepare_synthetic(tmp_path / "set", **(usual | settings))
    assert not (tmp_path / "set").exists()
