"""Sets: crops equal the audio that was stored, and unusable sets are reported."""

import json
import math
import multiprocessing
import os
import pickle
import re
import threading

import numpy as np
import pytest
from support.stored_songs import LENGTHS, RATE, STORAGE, random_songs, watch_records, write_set

from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.data.record_writer import INDEX, Storage, finish_set, shard_name
from wroformer_jax.data.tf_example import pack
from wroformer_jax.errors import InputError


@pytest.fixture(scope="module")
def audio():
    return random_songs()


@pytest.fixture
def directory(audio, tmp_path):
    return write_set(tmp_path / "a set", {"train": audio, "test": {"x": {"vocals": audio["third"]["vocals"]}}})


def crop_of(audio, start, stop):
    """Returns the samples from `start` to `stop`, zeros outside the array."""
    crop = np.zeros((len(audio), stop - start), np.float32)
    first, last = max(start, 0), min(stop, audio.shape[-1])
    if first < last:
        crop[:, first - start : last - start] = audio[:, first:last]
    return crop


def random_crops(record_set, audio, count, seed=0):
    """Yields crops of one sample to three segments, which may reach beyond the stem."""
    rng = np.random.default_rng(seed)
    songs = record_set.songs("train")
    for _ in range(count):
        song = songs[rng.integers(len(songs))]
        stem = rng.choice(list(song.stems))
        length = int(rng.choice([rng.integers(1, 20), rng.integers(1, RATE), rng.integers(RATE, 3 * RATE)]))
        start = int(rng.integers(-length, audio[song.name][stem].shape[-1] + 50))
        yield song, stem, start, start + length


@pytest.mark.parametrize(("encoding", "bits"), [("lossless", 16), ("int16", 16), ("lossless", 24)])
@pytest.mark.parametrize("channels", [2, 1])
def test_crops_equal_the_original_bit_for_bit(tmp_path, encoding, bits, channels):
    audio = random_songs(bits=bits, channels=channels)
    storage = Storage(sample_rate=RATE, channels=channels, segment_seconds=1, encoding=encoding)
    record_set = RecordSet.open(write_set(tmp_path, {"train": audio}, storage))
    for song, stem, start, stop in random_crops(record_set, audio, 1000):
        crop = record_set.read(song, stem, start, stop)
        np.testing.assert_array_equal(crop, crop_of(audio[song.name][stem], start, stop), strict=True)


def test_float32_is_exact_for_floats(tmp_path):
    rng = np.random.default_rng(0)
    audio = {"song": {"vocals": rng.standard_normal((2, 2345)).astype(np.float32)}}
    storage = Storage(sample_rate=RATE, segment_seconds=1, encoding="float32")
    record_set = RecordSet.open(write_set(tmp_path, {"train": audio}, storage))
    for song, stem, start, stop in random_crops(record_set, audio, 200):
        crop = record_set.read(song, stem, start, stop)
        np.testing.assert_array_equal(crop, crop_of(audio["song"]["vocals"], start, stop), strict=True)


def test_floats_beyond_full_scale_are_rounded_and_not_clipped(tmp_path):
    rng = np.random.default_rng(0)
    loud = rng.uniform(-3, 3, (2, 2345)).astype(np.float32)
    loud[:, :RATE] /= 100  # each segment has a scale of its own
    record_set = RecordSet.open(write_set(tmp_path, {"train": {"song": {"vocals": loud}}}))
    crop = record_set.read(record_set.songs("train")[0], "vocals", 0, 2345)
    assert np.abs(crop[:, :RATE] - loud[:, :RATE]).max() <= 2**-24
    assert np.abs(crop - loud).max() <= 4 * 2**-24


def test_what_is_in_a_set(directory, audio):
    record_set = RecordSet.open(directory)
    assert (record_set.path, record_set.splits) == (str(directory), ("train", "test"))
    assert (record_set.sample_rate, record_set.channels, record_set.segment_samples) == (RATE, 2, RATE)
    assert (record_set.encoding, record_set.stems) == ("lossless", ("bass", "drums", "empty", "other", "vocals"))
    songs = record_set.songs("train")
    assert [(song.name, song.split, song.samples) for song in songs] == [
        ("one song", "train", 2750),
        ("Ä/ö - 歌 🎵", "train", 501),
        ("third", "train", 3999),
    ]
    assert {song.name: {name: stem.samples for name, stem in song.stems.items()} for song in songs} == LENGTHS
    vocals = songs[0].stems["vocals"]
    assert len(vocals.levels) == 6
    assert vocals.levels == pytest.approx([-4.77] * 6, abs=0.5)
    assert vocals.active == "111111"
    assert songs[1].stems["empty"].levels == ()


def test_silence(tmp_path):
    quiet = np.zeros((2, 1200), np.float32)
    quiet[:, 700:] = 0.25
    record_set = RecordSet.open(write_set(tmp_path, {"train": {"song": {"vocals": quiet}}}))
    (song,) = record_set.songs("train")
    assert song.stems["vocals"].levels == pytest.approx((-math.inf, -14.26, -12.04))
    assert song.stems["vocals"].active == "011"


def test_a_stem_that_a_song_lacks_is_silence(directory):
    record_set = RecordSet.open(directory)
    song = record_set.songs("train")[0]
    np.testing.assert_array_equal(record_set.read(song, "piano", 5, 1005), np.zeros((2, 1000), np.float32), strict=True)


def test_the_mixture_is_no_stem(tmp_path, audio):
    song = {"vocals": audio["third"]["vocals"], "mixture": audio["third"]["bass"]}
    record_set = RecordSet.open(write_set(tmp_path, {"test": {"song": song}}))
    assert record_set.stems == ("vocals",)
    np.testing.assert_array_equal(
        record_set.read(record_set.songs("test")[0], "mixture", 0, 1500), audio["third"]["bass"]
    )


def test_notes_are_kept(tmp_path, audio):
    directory = write_set(tmp_path, {"train": audio})
    index = json.loads((directory / INDEX).read_text())
    index["splits"]["train"]["songs"][0]["notes"] = ["padded"]
    (directory / INDEX).write_text(json.dumps(index))
    assert [song.notes for song in RecordSet.open(directory).songs("train")] == [("padded",), (), ()]


@pytest.mark.parametrize(
    ("start", "stop", "segments"),
    [
        (0, 0, 0),
        (0, 1, 1),
        (0, 500, 1),
        (0, 501, 2),
        (499, 501, 2),
        (500, 1000, 1),
        (250, 1250, 3),
        (-300, 0, 0),
        (-9, 9, 1),
        (-100, 5000, 6),
        (2700, 9000, 1),
        (2750, 2751, 0),
    ],
)
def test_only_the_segments_of_a_crop_are_read(directory, monkeypatch, start, stop, segments):
    read = watch_records(monkeypatch)
    record_set = RecordSet.open(directory)
    song = record_set.songs("train")[0]
    record_set.read(song, "drums", start, stop)
    first = song.stems["drums"].first + max(start, 0) // RATE
    assert read == list(range(first, first + segments))


def test_files_are_opened_when_they_are_read(directory, audio):
    record_set = RecordSet.open(directory)
    (directory / shard_name("train", 1, 2)).rename(directory / "hidden")
    song = record_set.songs("train")[0]
    np.testing.assert_array_equal(record_set.read(song, "bass", 0, 1000), audio["one song"]["bass"])


def open_shards(directory):
    """Returns the files of a set that this process has open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.islink(link)]
    return [target for target in targets if target.startswith(f"{directory}/")]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_more_files_are_open_than_the_system_allows(directory, audio):
    record_set = RecordSet.open(directory)
    record_set.most_open_files = 1
    for song, stem, start, stop in random_crops(record_set, audio, 50):
        crop = record_set.read(song, stem, start, stop)
        np.testing.assert_array_equal(crop, crop_of(audio[song.name][stem], start, stop))
        assert len(open_shards(directory)) <= 1
    assert len(open_shards(directory)) == 1


def test_threads_read_at_the_same_time(directory, audio):
    record_set = RecordSet.open(directory)
    wrong = []

    def read(seed):
        for song, stem, start, stop in random_crops(record_set, audio, 100, seed):
            if not np.array_equal(
                record_set.read(song, stem, start, stop), crop_of(audio[song.name][stem], start, stop)
            ):
                wrong.append((song.name, stem, start, stop))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_can_be_pickled(directory, audio):
    record_set = RecordSet.open(directory)
    record_set.read(record_set.songs("train")[0], "vocals", 0, 1)
    again = pickle.loads(pickle.dumps(record_set))
    assert again.fingerprint == record_set.fingerprint
    np.testing.assert_array_equal(again.read(again.songs("train")[2], "bass", 0, 1500), audio["third"]["bass"])


def _read_in_child(record_set, queue):
    first = record_set.songs("train")[0]
    queue.put(record_set.read(first, "vocals", 0, first.stems["vocals"].samples))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_files(directory, audio, monkeypatch):
    """Even if it was forked while a thread closed a file, and so inherits a lock that is held."""
    from array_record.python import array_record_module

    parent, closing, forked = os.getpid(), threading.Event(), threading.Event()

    class SlowToClose(array_record_module.ArrayRecordReader):
        def __del__(self):
            if os.getpid() == parent:
                closing.set()
                forked.wait(10)

    monkeypatch.setattr(array_record_module, "ArrayRecordReader", SlowToClose)
    record_set = RecordSet.open(directory)
    record_set.most_open_files = 1
    first, _, third = record_set.songs("train")  # in two shards
    record_set.read(first, "vocals", 0, 1)
    thread = threading.Thread(target=record_set.read, args=(third, "vocals", 0, 1))
    thread.start()
    assert closing.wait(10)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(record_set, queue), daemon=True)
    child.start()  # which has to open the file that is being closed
    forked.set()
    np.testing.assert_array_equal(queue.get(timeout=20), audio[first.name]["vocals"])
    child.join()
    thread.join()


def test_fingerprint(tmp_path, audio):
    def fingerprint(name, songs):
        return RecordSet.open(write_set(tmp_path / name, {"train": songs})).fingerprint

    assert fingerprint("a", audio) == fingerprint("b", audio)
    assert fingerprint("a", audio) != fingerprint("c", random_songs(seed=1))
    index = json.loads((tmp_path / "b" / INDEX).read_text())
    (tmp_path / "b" / INDEX).write_text(json.dumps({**index, "wroformer": "0.0.1"}))
    assert RecordSet.open(tmp_path / "b").fingerprint == fingerprint("a", audio)


def test_unknown_split(directory):
    with pytest.raises(InputError, match=r"a set has no split 'validation', only train, test"):
        RecordSet.open(directory).songs("validation")


def test_splits_without_records(tmp_path):
    record_set = RecordSet.open(write_set(tmp_path, {"train": {"song": {"vocals": np.zeros((2, 0), np.float32)}}}))
    (song,) = record_set.songs("train")
    assert song.samples == 0
    assert not record_set.read(song, "vocals", 0, 10).any()


def test_what_is_a_set(directory, tmp_path):
    assert is_set(directory)
    assert is_set(str(directory))
    assert not is_set(tmp_path)
    assert not is_set(tmp_path / "nowhere")
    assert not is_set(directory / INDEX)
    (tmp_path / INDEX).write_text('{"pages": []}')  # written by another program
    assert not is_set(tmp_path)


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        RecordSet.open(path)
    assert "\n" not in str(caught.value)


def test_no_set(tmp_path, directory):
    refused(tmp_path / "nowhere", "nowhere does not exist: expected the directory")
    refused(directory / INDEX, r"index\.json does not exist: expected the directory")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty", r"empty is not a prepared set: it has no index\.json; make a set with `wroformer prepare`"
    )
    (tmp_path / "empty" / INDEX).write_text('{"pages": []}')
    refused(
        tmp_path / "empty", r"empty is not a prepared set: its index\.json is something else; expected a directory made"
    )


def test_interrupted_preparation(directory, tmp_path):
    (directory / INDEX).unlink()
    refused(directory, "a set is not whole: its preparation was interrupted, run `wroformer prepare` again")
    (tmp_path / "begun" / ".preparing").mkdir(parents=True)
    refused(tmp_path / "begun", "begun is not whole: its preparation was interrupted")


def test_another_format(directory):
    index = json.loads((directory / INDEX).read_text())
    (directory / INDEX).write_text(json.dumps({"format": 2, "wroformer": "9.1", "all": "new"}))
    refused(
        directory, r"a set is a set of format 2, written by wroformer-jax 9\.1; this version reads format 1: prepare"
    )
    (directory / INDEX).write_text(json.dumps({**index, "format": None}))
    refused(directory, "a set is a set of format None")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"format": 1, "sta', "Unterminated string"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[]", "it is not a JSON object"),
        (b'{"format": 1}', r"KeyError\('sample_rate'\)"),
    ],
)
def test_damaged_index(directory, text, reason):
    (directory / INDEX).write_bytes(text)
    refused(directory, rf"index\.json is damaged \(.*{reason}.*\): restore it, or prepare the set again")


@pytest.mark.parametrize(
    "change", [{"first": -1}, {"first": 10**6}, {"samples": 10**6}, {"levels": 7}, {"levels": []}, {"active": None}]
)
def test_index_that_does_not_fit_its_records(directory, change):
    index = json.loads((directory / INDEX).read_text())
    index["splits"]["test"]["songs"][0]["stems"]["vocals"].update(change)
    if change == {"active": None}:
        del index["splits"]["test"]["songs"][0]["stems"]["vocals"]["active"]
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, r"index\.json is damaged \(.*\): restore it")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that bind")
def test_closed_folder(directory):
    directory.chmod(0)
    refused(directory, "cannot use .*a set: Permission denied")
    directory.chmod(0o700)


def test_index_that_is_a_folder(directory):
    (directory / INDEX).unlink()
    (directory / INDEX).mkdir()
    refused(directory, r"cannot use .*a set: Is a directory")


def test_files_whose_owner_has_no_name(directory, audio, monkeypatch):
    """As in a container that runs as an arbitrary user: etils would ask for the name."""
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    record_set = RecordSet.open(directory)
    song = record_set.songs("train")[0]
    np.testing.assert_array_equal(record_set.read(song, "vocals", 0, 100), audio[song.name]["vocals"][:, :100])


def test_missing_shard(directory):
    shard = directory / shard_name("train", 1, 2)
    shard.unlink()
    refused(directory, rf"{re.escape(str(shard))} is missing: restore it, or prepare the set again")


def test_truncated_shard(directory):
    shard = directory / shard_name("train", 0, 2)
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused(directory, rf"{shard.name} has {size - 1000:,} bytes instead of {size:,}, so it was cut short or replaced")


def read_all(directory):
    record_set = RecordSet.open(directory)
    for song in record_set.songs("train"):
        for stem in song.stems:
            record_set.read(song, stem, 0, song.samples)


def test_damaged_bytes_in_a_shard(directory):
    shard = directory / shard_name("train", 0, 2)
    content = bytearray(shard.read_bytes())
    content[content.index(b"fLaC") + 500] ^= 1  # one bit
    shard.write_bytes(content)
    message = (
        rf"{re.escape(str(shard))} cannot be read at segment 0 of vocals of one song \(.*hash mismatch.*\): restore it"
    )
    with pytest.raises(InputError, match=message):
        read_all(directory)


def test_shards_that_took_each_others_place(tmp_path, audio):
    """Both have the same size and are whole."""
    third = audio["third"]
    directory = write_set(tmp_path, {"train": {"a": third, "b": third}}, songs_in_shard=1)
    first, second = directory / shard_name("train", 0, 2), directory / shard_name("train", 1, 2)
    first.rename(tmp_path / "other")
    second.rename(first)
    (tmp_path / "other").rename(second)
    with pytest.raises(
        InputError, match=r"cannot be read at segment 0 of vocals of a \(another segment is in its place\)"
    ):
        read_all(directory)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"audio": b"no FLAC"}, "FLAC that cannot be decoded"),
        ({"encoding": "float32"}, "buffer is smaller than requested size"),
        ({"encoding": "mp3"}, "'mp3'"),
        ({"encoding": 5}, "'int' object has no attribute 'decode'"),
        (None, "not an example"),
    ],
)
def test_records_of_something_else(tmp_path, change, reason):
    from array_record.python.array_record_module import ArrayRecordWriter

    fields = {"song": "song", "stem": "vocals", "segment": 0, "encoding": "flac", "scale": 1.0, "audio": bytes(80)}
    path = tmp_path / shard_name("train", 0, 1)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"\xff\xff" if change is None else pack({**fields, **change}))
    writer.close()
    stem = {"first": 0, "samples": 100, "levels": [None], "active": "0"}
    song = {"name": "song", "samples": 100, "notes": [], "stems": {"vocals": stem}}
    finish_set(
        tmp_path, STORAGE, {"train": [(path.name, {"records": 1, "bytes": path.stat().st_size, "songs": [song]})]}
    )
    with pytest.raises(
        InputError, match=rf"cannot be read at segment 0 of vocals of song \(.*{reason}.*\): restore it"
    ):
        read_all(tmp_path)


def test_a_file_that_goes_away(directory):
    record_set = RecordSet.open(directory)
    (directory / shard_name("train", 0, 2)).unlink()
    with pytest.raises(
        InputError, match=r"cannot be read at segment 0 .*\(open\(\) failed: No such file or directory\)"
    ):
        record_set.read(record_set.songs("train")[0], "vocals", 0, 1)
