"""Sets in a bucket, on a local server that answers gcsfs like Google's."""

import collections
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath
from support.fake_bucket import fake_storage
from support.stored_songs import STORAGE, random_songs, write_set

from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.data.record_writer import INDEX, finish_set, shard_name, write_shard
from wroformer_jax.errors import InputError
from wroformer_jax.io import buckets

pytest.importorskip("gcsfs")

SET = "gs://bucket/some sets/ä"


@pytest.fixture(scope="module")
def audio():
    return random_songs()


@pytest.fixture(scope="module")
def local_set(audio, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "a", {"train": audio})


@pytest.fixture
def storage(monkeypatch, tmp_path):
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache"))
    with fake_storage(monkeypatch, "bucket") as server:
        yield server


@pytest.fixture
def bucket(storage, local_set):
    """Returns the server, with a set in its bucket."""
    for path in local_set.iterdir():
        storage.objects["bucket", f"some sets/ä/{path.name}"] = path.read_bytes()
    return storage


def shard(number):
    return f"some sets/ä/{shard_name('train', number, 2)}"


def downloads(server):
    return [request.split("/o/")[1] for request in server.requests if request.startswith("GET /download")]


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("stems-*"))


def test_a_set_in_a_bucket_is_read_as_a_local_one(bucket, audio, local_set):
    record_set = RecordSet.open(SET)
    assert record_set.path == SET
    assert record_set.fingerprint == RecordSet.open(local_set).fingerprint
    for song in record_set.songs("train"):
        for stem, expected in audio[song.name].items():
            crop = record_set.read(song, stem, 0, expected.shape[-1])
            np.testing.assert_array_equal(crop, expected, strict=True)


def test_only_files_that_are_read_from_are_copied_and_only_once(bucket, tmp_path):
    record_set = RecordSet.open(epath.Path(SET))
    assert downloads(bucket) == [f"some sets/ä/{INDEX}"]
    song = record_set.songs("train")[2]
    for reader in (record_set, record_set, pickle.loads(pickle.dumps(record_set)), RecordSet.open(SET)):
        reader.read(song, "vocals", 0, 3999)
    assert [name for name in downloads(bucket) if INDEX not in name] == [shard(1)]
    assert cached(tmp_path) == [shard_name("train", 1, 2)]


def test_who_comes_second_waits_for_the_first(bucket):
    """Threads stand for processes here, since the locks belong to open files."""
    record_sets = [RecordSet.open(SET) for _ in range(6)]
    start = threading.Barrier(len(record_sets))

    def read(record_set):
        start.wait()
        record_set.read(record_set.songs("train")[0], "vocals", 0, 100)

    threads = [threading.Thread(target=read, args=(record_set,)) for record_set in record_sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads(bucket).count(shard(0)) == 1


def test_copies_of_an_earlier_set_are_not_used(bucket, audio, tmp_path):
    earlier = RecordSet.open(SET)
    earlier.read(earlier.songs("train")[0], "vocals", 0, 100)
    later = {name: {stem: -samples / 2 for stem, samples in stems.items()} for name, stems in audio.items()}
    for path in write_set(tmp_path / "later", {"train": later}).iterdir():
        bucket.objects["bucket", f"some sets/ä/{path.name}"] = path.read_bytes()
    epath.backend.fsspec_backend.fs(SET).invalidate_cache()
    record_set = RecordSet.open(SET)
    crop = record_set.read(record_set.songs("train")[0], "vocals", 0, 100)
    np.testing.assert_array_equal(crop, -audio["one song"]["vocals"][:, :100] / 2)


def test_a_set_can_be_finished_in_a_bucket(storage, audio, tmp_path):
    name = shard_name("train", 0, 1)
    part = write_shard(tmp_path / name, [("song", {"vocals": [audio["third"]["vocals"]]})], STORAGE)
    buckets.upload(tmp_path / name, epath.Path(SET) / name)
    assert not is_set(SET)
    with pytest.raises(InputError, match="ä is not whole: its preparation was interrupted"):
        RecordSet.open(SET)
    finish_set(SET, STORAGE, {"train": [(name, part)]})
    assert is_set(SET)
    written = [name for _, name in storage.objects]
    assert written[-1] == f"some sets/ä/{INDEX}"
    assert len(written) == 4
    record_set = RecordSet.open(SET)
    crop = record_set.read(record_set.songs("train")[0], "vocals", 0, 3999)
    np.testing.assert_array_equal(crop, audio["third"]["vocals"])


@pytest.mark.parametrize("place", ["gs://nowhere/set", "gs://bucket/nowhere"])
def test_nothing_there(storage, place):
    assert not is_set(place)
    with pytest.raises(InputError, match=f"^{place} does not exist: expected the directory, or bucket and directory"):
        RecordSet.open(place)


def test_no_bucket_to_write_to(storage):
    with pytest.raises(InputError, match=r"cannot use gs://nowhere/set/\w+.json: there is no such bucket"):
        finish_set("gs://nowhere/set", STORAGE, {})


def test_no_access(bucket, capfd):
    bucket.refusal = 403
    for use in (RecordSet.open, is_set):
        with pytest.raises(InputError, match=f"^cannot use {SET}: Forbidden: .* no access to storage.objects$"):
            use(SET)
    assert capfd.readouterr() == ("", "")


def test_missing_shard(bucket):
    del bucket.objects["bucket", shard(1)]
    with pytest.raises(InputError, match=f"gs://bucket/{shard(1)} is missing"):
        RecordSet.open(SET)


def test_truncated_shard(bucket):
    bucket.objects["bucket", shard(1)] = bucket.objects["bucket", shard(1)][:-10]
    with pytest.raises(InputError, match=rf"gs://bucket/{shard(1)} has [\d,]+ bytes instead of [\d,]+, so it was cut"):
        RecordSet.open(SET)


def read_first(record_set):
    record_set.read(record_set.songs("train")[0], "vocals", 0, 100)


def test_shard_that_goes_away(bucket, tmp_path):
    record_set = RecordSet.open(SET)
    epath.backend.fsspec_backend.fs(SET).invalidate_cache()
    del bucket.objects["bucket", shard(0)]
    with pytest.raises(InputError, match=f"^gs://bucket/{shard(0)} is missing: restore it, or prepare the set again$"):
        read_first(record_set)
    assert cached(tmp_path) == []


def test_shard_that_is_cut_short_later(bucket, tmp_path):
    record_set = RecordSet.open(SET)
    epath.backend.fsspec_backend.fs(SET).invalidate_cache()
    bucket.objects["bucket", shard(0)] = b"short"
    with pytest.raises(InputError, match=rf"gs://bucket/{shard(0)} has 5 bytes instead of [\d,]+: restore it"):
        read_first(record_set)
    assert cached(tmp_path) == []


def test_full_disk(bucket, tmp_path, monkeypatch):
    record_set = RecordSet.open(SET)
    usage = collections.namedtuple("Usage", "total used free")(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"cannot write \S+/cache/sets/\S+: the disk is full"):
        read_first(record_set)
    assert cached(tmp_path) == []


def test_cache_that_cannot_be_made(bucket, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write \S+/file/sets/\S+: .*Not a directory"):
        read_first(RecordSet.open(SET))


def test_without_gcsfs():
    code = """if True:
        import sys
        sys.modules["gcsfs"] = None
        from wroformer_jax.data.record_set import RecordSet
        RecordSet.open("gs://bucket/set")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("gs://bucket/set is in a bucket, which needs gcsfs: pip install 'wroformer-jax[gcs]'")
