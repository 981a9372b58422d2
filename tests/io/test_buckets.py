"""Files in a bucket, on a local server that answers gcsfs like Google's."""

import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from support.fake_bucket import fake_storage

from wroformer_jax.errors import InputError
from wroformer_jax.io import buckets

pytest.importorskip("gcsfs")


@pytest.fixture
def storage(monkeypatch, tmp_path):
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache"))
    with fake_storage(monkeypatch, "bucket") as server:
        yield server


@pytest.mark.parametrize("num_bytes", [0, 1000, 6_000_000])
def test_files_are_copied_whole(storage, tmp_path, num_bytes):
    content = np.random.default_rng(0).bytes(num_bytes)
    (tmp_path / "a").write_bytes(content)
    buckets.upload(tmp_path / "a", epath.Path("gs://bucket/a"))
    assert storage.objects["bucket", "a"] == content
    assert buckets.fetch(epath.Path("gs://bucket/a"), num_bytes, "1").read_bytes() == content


def test_what_arrives_in_part_is_noticed(storage, tmp_path):
    storage.bytes_lost = 5
    (tmp_path / "a").write_bytes(bytes(1000))
    with pytest.raises(InputError, match=r"gs://bucket/a has 995 of the 1,000 bytes of \S+/a: copy it again"):
        buckets.upload(tmp_path / "a", epath.Path("gs://bucket/a"))


def test_texts_are_whole_or_not_there(tmp_path):
    path = epath.Path(tmp_path / "a.json")
    buckets.write_whole(path, json.dumps("ü", ensure_ascii=False))
    assert json.loads(path.read_text()) == "ü"
    with pytest.raises(InputError, match=r"cannot write \S+nowhere/a.json: "):
        buckets.write_whole(epath.Path(tmp_path / "nowhere" / "a.json"), "")


def test_no_bucket_to_write_to(storage, tmp_path):
    (tmp_path / "a").write_bytes(bytes(10))
    with pytest.raises(InputError, match="cannot use gs://nowhere/a: there is no such bucket"):
        buckets.upload(tmp_path / "a", epath.Path("gs://nowhere/a"))


def test_paths_of_both_kinds(tmp_path):
    for name in (tmp_path, "/gs/bucket/a", "/s3/songs"):  # epath by itself would take the others for buckets
        assert isinstance(buckets.as_place(name), Path)
        assert not buckets.is_remote(name)
    assert str(buckets.as_place("gs://bucket/a")) == "gs://bucket/a"
    with pytest.raises(InputError, match="s3://bucket: expected a local path, or one in a bucket of Google"):
        buckets.place("s3://bucket")


def test_without_gcsfs():
    sentence = "gs://bucket/a is in a bucket, which needs gcsfs: pip install"
    with pytest.raises(InputError, match=sentence), buckets.access("gs://bucket/a"):
        raise ImportError("No module named 'gcsfs'")


def test_folders_are_deleted_whole(storage, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    buckets.remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    storage.objects["bucket", "a/b"] = b"1"
    buckets.remove_tree(buckets.place("gs://bucket/a"))
    assert not storage.objects
