"""Writing sets: the files of a set, TFDS reads them, and failures leave nothing half-written."""

import importlib.metadata
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from support.separation_models import limited_file_size
from support.stored_songs import LENGTHS, RATE, STORAGE, in_blocks, random_songs, write_set

from wroformer_jax.data.record_writer import INDEX, Storage, finish_set, shard_name, write_shard
from wroformer_jax.errors import InputError


@pytest.fixture(scope="module")
def audio():
    return random_songs()


@pytest.fixture(scope="module")
def directory(audio, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "a set", {"train": audio, "test": dict([*audio.items()][:1])})


def noise(seconds, channels=2):
    return np.random.default_rng(0).uniform(-1, 1, (channels, seconds * RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", 655_351),
        ("channels", 3),
        ("segment_seconds", 0),
        ("segment_seconds", 601),
        ("encoding", "mp3"),
    ],
)
def test_impossible_storage(field, value):
    with pytest.raises(InputError, match=f"{field} is {value!r}, expected "):
        Storage(**{field: value})


def test_names_of_shards_are_those_of_tfds():
    assert shard_name("train", 3, 12) == "stems-train.array_record-00003-of-00012"
    assert Storage().segment_samples == 12 * 44100


def test_a_set_is_these_files(directory):
    assert sorted(path.name for path in directory.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "index.json",
        "stems-test.array_record-00000-of-00001",
        "stems-train.array_record-00000-of-00002",
        "stems-train.array_record-00001-of-00002",
    ]


def test_the_index(directory):
    index = json.loads((directory / INDEX).read_text())
    splits = index.pop("splits")
    assert index == {
        "format": 1,
        "wroformer": importlib.metadata.version("wroformer-jax"),
        "sample_rate": RATE,
        "channels": 2,
        "segment_samples": RATE,
        "encoding": "lossless",
        "stems": ["bass", "drums", "empty", "other", "vocals"],
    }
    assert list(splits) == ["train", "test"]
    shards, songs = splits["train"]["shards"], splits["train"]["songs"]
    assert [shard["records"] for shard in shards] == [6 + 6 + 2 + 1 + 1 + 2, 8 + 3]
    assert [shard["bytes"] for shard in shards] == [(directory / shard["name"]).stat().st_size for shard in shards]
    assert [song["name"] for song in songs] == list(LENGTHS)
    assert [song["samples"] for song in songs] == [2750, 501, 3999]
    assert {song["name"]: {s: e["samples"] for s, e in song["stems"].items()} for song in songs} == LENGTHS
    firsts = [entry["first"] for song in songs for entry in song["stems"].values()]
    assert firsts == [0, 6, 12, 14, 15, 16, 18, 18, 26]


def test_levels_and_marks(tmp_path):
    stem = np.zeros((2, 4 * RATE + 10), np.float32)
    stem[:, : RATE // 2] = 0.5
    stem[:, 2 * RATE :] = 0.0009
    part = write_shard(tmp_path / "a", [("song", {"vocals": [stem]})], Storage(sample_rate=RATE, segment_seconds=2))
    entry = part["songs"][0]["stems"]["vocals"]
    assert entry == {"first": 0, "samples": 4 * RATE + 10, "levels": [-12.04, -60.92, -60.92], "active": "10000"}
    silent = write_shard(tmp_path / "a", [("song", {"vocals": [stem * 0]})], STORAGE)
    assert silent["songs"][0]["stems"]["vocals"]["levels"] == [None] * 5
    json.dumps(silent, allow_nan=False)


def test_marks_of_segments_join_up(tmp_path):
    stem = noise(7) * np.repeat([1, 0, 0, 1, 0, 1, 1], RATE).astype(np.float32)
    for segment_seconds in (1, 3, 10):
        storage = Storage(sample_rate=RATE, segment_seconds=segment_seconds)
        part = write_shard(tmp_path / "a", [("song", {"vocals": in_blocks(stem)})], storage)
        assert part["songs"][0]["stems"]["vocals"]["active"] == "1001011"


def test_tfds_reads_the_set(directory, audio):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(directory).as_data_source("train")
    assert len(source) == 29
    records = [source[number] for number in range(29)]
    audio_of = {name: b"".join(r["audio"] for r in records if r["song"].decode() == name) for name in LENGTHS}
    assert all(audio_of.values())
    last = records[5]
    assert last.pop("audio")[:4] == b"fLaC"
    assert last.pop("level") == pytest.approx(-4.77, abs=0.3)
    assert last == {
        "song": b"one song",
        "stem": b"vocals",
        "segment": 5,
        "offset": 2500,
        "samples": 250,
        "sample_rate": RATE,
        "encoding": b"flac",
        "scale": 1.0,
        "active": b"1",
    }


def test_nothing_is_said_of_tensorflow(tmp_path):
    """TFDS would print advice to install it."""
    code = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from wroformer_jax.data.record_writer import *
        from wroformer_jax.data.record_set import RecordSet
        directory, name = Path(sys.argv[1]), shard_name("train", 0, 1)
        songs = [("song", {"vocals": [np.zeros((2, 100), np.float32)]})]
        part = write_shard(directory / name, songs, Storage())
        finish_set(directory, Storage(), {"train": [(name, part)]})
        record_set = RecordSet.open(directory)
        record_set.read(record_set.songs("train")[0], "vocals", 0, 100)
        assert "jax" not in sys.modules and "tensorflow" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_progress_is_told_in_samples(tmp_path, audio):
    told = []
    write_shard(tmp_path / "a", [("song", {"vocals": in_blocks(audio["one song"]["vocals"])})], STORAGE, told.append)
    assert told == [500, 500, 500, 500, 500, 250]


def test_memory_is_that_of_segments(tmp_path):
    block = noise(20)
    storage = Storage(sample_rate=RATE, segment_seconds=20)

    def peak(num_blocks):
        tracemalloc.start()
        write_shard(tmp_path / "a", [("song", {"vocals": (block for _ in range(num_blocks))})], storage)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)  # imports
    assert peak(100) < peak(5) + block.nbytes


def test_a_song_that_fails_leaves_nothing(tmp_path):
    def breaking():
        yield noise(3)
        raise InputError("song.wav is damaged")

    with pytest.raises(InputError, match=r"^song\.wav is damaged$"):
        write_shard(tmp_path / "a", [("song", {"vocals": breaking()})], STORAGE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_audio(tmp_path, value):
    stem = noise(1)
    stem[1, 7] = value
    with pytest.raises(InputError, match=r"drums of song has samples that are not audio \(NaN, infinite or above"):
        write_shard(tmp_path / "a", [("song", {"drums": [stem]})], STORAGE)


def test_names_that_are_not_unicode(tmp_path):
    with pytest.raises(InputError, match=r"the name 'old\\udcfc' is not Unicode: rename it"):
        write_shard(tmp_path / "a", [("old\udcfc", {"vocals": [noise(1)]})], STORAGE)


def test_full_disk(tmp_path):
    """ArrayRecord reports it late, or only when its file is closed."""
    earlier = tmp_path / "a"
    earlier.write_text("earlier")
    songs = [("song", {"vocals": (noise(1) for _ in range(400))})]
    with limited_file_size(), pytest.raises(InputError, match=r"cannot write \S+a: File too large"):
        write_shard(earlier, songs, STORAGE)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"cannot write \S+nowhere/a: \[Errno 2\]|cannot write \S+a: No such file"):
        write_shard(tmp_path / "nowhere" / "a", [], STORAGE)


def test_full_disk_at_the_end_leaves_no_index(tmp_path, monkeypatch):
    part = write_shard(tmp_path / shard_name("train", 0, 1), [("song", {"vocals": [noise(1)]})], STORAGE)
    with limited_file_size(3000), pytest.raises(InputError, match=r"cannot write \S+index\.json: File too large"):
        finish_set(tmp_path, STORAGE, {"train": [(shard_name("train", 0, 1), many_songs(part))]})
    assert not (tmp_path / INDEX).exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def many_songs(part):
    """Returns a description of so many songs that the index is longer than the files of TFDS."""
    return {**part, "songs": part["songs"] * 100}
