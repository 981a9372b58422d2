"""Unfinished sets: where they may be written, and going on after an interruption, also in a bucket."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from support.fake_bucket import fake_storage
from support.preparing import LOW_RATE, interrupt_before_publishing, run, run_long
from support.separation_models import limited_file_size
from support.stems_on_disk import RATE, files_of, make_song

from wroformer_jax.data.prepare import shards, staging
from wroformer_jax.data.record_set import RecordSet, is_set
from wroformer_jax.errors import InputError


def test_a_set_is_not_overwritten_unless_asked_to(tmp_path, data):
    run(data, tmp_path / "set")
    before = (tmp_path / "set" / "index.json").read_bytes()
    with pytest.raises(InputError, match=r"set is a prepared set already: use --overwrite to replace it"):
        run(data, tmp_path / "set")
    assert (tmp_path / "set" / "index.json").read_bytes() == before
    run(data / "test", tmp_path / "set", overwrite=True)
    record_set = RecordSet.open(tmp_path / "set")
    assert record_set.splits == ("train",)
    assert len(files_of(tmp_path / "set")) == 4  # no shard of the old one


def test_a_set_of_another_version_is_replaced_only_when_asked_to(tmp_path, data):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "index.json").write_text(json.dumps({"format": 99}))
    (tmp_path / "set" / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="is a prepared set already"):
        run(data, tmp_path / "set")
    run(data, tmp_path / "set", overwrite=True)
    assert len(RecordSet.open(tmp_path / "set").songs("train")) == 4


def test_units_of_another_version_are_not_used(tmp_path, long_songs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "__version__", "0.0.0")
        with pytest.raises(KeyboardInterrupt):
            run_long(long_songs, tmp_path / "set", say=interrupt_before_publishing)
    _, said = run_long(long_songs, tmp_path / "set")
    assert "goes on" not in said


def test_a_folder_with_something_else_in_it(tmp_path, data):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(
            InputError, match=r"set is not empty \(thesis\.tex\) and not a prepared set: choose another"
        ):
            run(data, tmp_path / "set", overwrite=overwrite)
    assert files_of(tmp_path / "set") == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis\.tex is not a folder"):
        run(data, tmp_path / "set" / "thesis.tex")
    with pytest.raises(InputError, match="data is not empty"):
        run(data, data)


def test_an_empty_folder_is_used(tmp_path, data):
    (tmp_path / "set").mkdir()
    run(data, tmp_path / "set")
    assert is_set(tmp_path / "set")


@pytest.mark.parametrize("name", ["x" * 300, "file/set"])
def test_a_place_that_cannot_be_written(tmp_path, data, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot (use|write) .*: (File name too long|Not a directory)"):
        run(data, tmp_path / name)


def test_two_at_a_time_are_refused(tmp_path, data):
    first = staging.Staging(tmp_path / "set")
    with first.claimed(overwrite=False), pytest.raises(InputError, match="set is in use by another run"):
        run(data, tmp_path / "set")
    run(data, tmp_path / "set")


@pytest.mark.parametrize("encoding", ["lossless", "float32"])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(tmp_path, long_songs, encoding, workers):
    make_song(long_songs / "train" / "Song 2", samples=100 * RATE, rate=LOW_RATE)
    with limited_file_size(600_000), pytest.raises(InputError, match=r"the disk is full|File too large"):
        run_long(long_songs, tmp_path / "set", encoding=encoding, workers=workers)
    assert not is_set(tmp_path / "set")
    assert all(name.endswith((".json", ".array_record")) for name in files_of(tmp_path / "set"))
    _, said = run_long(long_songs, tmp_path / "set", encoding=encoding)
    assert "goes on with" in said
    assert is_set(tmp_path / "set")


def test_a_disk_without_room_is_found_at_once(tmp_path, data, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"set.*disk is full.*1\.4 MB are needed, 0\.0 MB are free"):
        run(data, tmp_path / "set", encoding="float32")
    assert not (tmp_path / "set").exists()


# --- interrupted


def test_files_whose_owner_has_no_name(tmp_path, long_songs, monkeypatch):
    """As in a container that runs as an arbitrary user: etils would ask for the name."""

    def unknown(uid):
        raise KeyError(uid)

    with pytest.raises(KeyboardInterrupt):
        run_long(long_songs, tmp_path / "set", say=interrupt_before_publishing)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    _, said = run_long(long_songs, tmp_path / "set")
    assert "goes on with 5 of 5 shards" in said


def test_an_interrupted_run_goes_on(tmp_path, long_songs, monkeypatch):
    run_long(long_songs, tmp_path / "at once")
    keep, kept = staging.Staging.keep, []

    def interrupted(self, key, written):
        keep(self, key, written)
        kept.append(key)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging.Staging, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_long(long_songs, tmp_path / "set")
    assert files_of(tmp_path / "set") == sorted(
        f".preparing/{key}.{suffix}" for key in kept for suffix in ("json", "array_record")
    )
    _, said = run_long(long_songs, tmp_path / "set")
    assert "goes on with 2 of 5 shards" in said
    assert_same(tmp_path / "set", tmp_path / "at once")


def assert_same(one, other):
    assert files_of(one) == files_of(other)
    for name in files_of(one):
        assert (one / name).read_bytes() == (other / name).read_bytes()


# Prepares a set, and kills itself when the function that the test names has been called `number` times.
_KILLED = """
    import os, signal, sys
    from wroformer_jax.data import segments
    from wroformer_jax.data.prepare import staging, write
    source, directory, what, number = sys.argv[1:]
    calls = 0
    def killed(original):
        def call(*arguments, **keywords):
            global calls
            name = str(getattr(arguments[0], "name", ""))
            calls += not (name.startswith(".") and "-" in name)  # temporary files do not count
            if calls > int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)
        return call
    path_class = type(staging.as_place(directory))
    owner, name = {
        "record": (segments, "encode"),
        "shard": (staging.Staging, "keep"),
        "rename": (path_class, "replace"),
        "write": (staging, "write_whole"),
        "finish": (staging, "finish_set"),
        "tidy": (staging, "remove_tree"),
        "unlink": (path_class, "unlink"),
    }[what]
    setattr(owner, name, killed(getattr(owner, name)))
    write.prepare(source, directory, sample_rate=1000, segment_seconds=1, overwrite=True)
"""


def prepare_and_die(source, directory, what, number):
    command = [sys.executable, "-c", textwrap.dedent(_KILLED), str(source), str(directory), what, str(number)]
    process = subprocess.run(command, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize(
    ("what", "number", "earlier"),
    [
        ("rename", 3, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("record", 5, False),
                ("record", 5, True),
                ("shard", 3, True),
                ("write", 4, False),
                ("write", 5, True),
                ("rename", 0, True),
                ("rename", 3, False),
                ("finish", 0, False),
                ("finish", 0, True),
                ("tidy", 0, True),
                ("unlink", 1, True),
            ]
        ),
    ],
)
def test_killed_at_any_moment(tmp_path, long_songs, what, number, earlier):
    run_long(long_songs, tmp_path / "at once")
    if earlier:  # an existing set, which is to be replaced
        make_song(tmp_path / "old" / "a", 7)
        run(tmp_path / "old", tmp_path / "set")
    prepare_and_die(long_songs, tmp_path / "set", what, number)
    if is_set(tmp_path / "set"):  # whole, the old one or the new
        record_set = RecordSet.open(tmp_path / "set")
        assert len(record_set.songs("train")) == (4 if what == "tidy" else 1)
        assert what != "unlink"
    _, said = run_long(long_songs, tmp_path / "set", overwrite=True)
    assert what in ("record", "tidy") or "goes on with" in said
    assert_same(tmp_path / "set", tmp_path / "at once")


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    """Otherwise they would go on writing beside the next run."""
    for index in range(4):
        make_song(tmp_path / "data" / f"Song {index}", index, samples=200 * RATE)
    code = textwrap.dedent(
        """
        import sys, threading, time, os, signal, multiprocessing
        from wroformer_jax.data.prepare import write
        def kill(self, seconds):
            if seconds > 0:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        if __name__ == "__main__":
            write.Progress.advance = kill
            write.prepare(sys.argv[1], sys.argv[2], sample_rate=8000, segment_seconds=1, workers=2)
        """
    )
    (tmp_path / "run.py").write_text(code)
    arguments = [sys.executable, tmp_path / "run.py", tmp_path / "data", tmp_path / "set"]
    with (tmp_path / "pids").open("w") as pids:  # a pipe would stay open as long as the workers live
        assert subprocess.run(arguments, stdout=pids).returncode == -signal.SIGKILL
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) >= 1
    deadline = time.monotonic() + 10
    while running := [pid for pid in workers if is_running(pid)]:
        if time.monotonic() > deadline:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"still there: {running}")
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


# --- in a bucket


@pytest.fixture
def bucket(monkeypatch):
    with fake_storage(monkeypatch, "bucket") as storage:
        yield storage


def objects_of(bucket):
    return {name.removeprefix("sets/one/"): content for (_, name), content in bucket.objects.items()}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_set_in_a_bucket(tmp_path, long_songs, bucket, workers):
    run_long(long_songs, tmp_path / "local")
    run_long(long_songs, "gs://bucket/sets/one", workers=workers)
    assert objects_of(bucket) == {
        name: (tmp_path / "local" / name).read_bytes() for name in files_of(tmp_path / "local")
    }
    with pytest.raises(InputError, match="gs://bucket/sets/one is a prepared set already"):
        run_long(long_songs, "gs://bucket/sets/one")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [("shard", 3), ("rename", 3), ("finish", 0)])
def test_killed_while_it_writes_to_a_bucket(tmp_path, long_songs, bucket, what, number):
    run_long(long_songs, tmp_path / "local")
    make_song(tmp_path / "old" / "a", 7)
    run(tmp_path / "old", "gs://bucket/sets/one")
    prepare_and_die(long_songs, "gs://bucket/sets/one", what, number)
    _, said = run_long(long_songs, "gs://bucket/sets/one", overwrite=True)
    assert "goes on with" in said
    assert objects_of(bucket) == {
        name: (tmp_path / "local" / name).read_bytes() for name in files_of(tmp_path / "local")
    }


def test_something_else_in_a_bucket(data, bucket):
    bucket.objects["bucket", "sets/one/thesis.tex"] = b"all of it"
    with pytest.raises(InputError, match=r"gs://bucket/sets/one is not empty \(thesis\.tex\) and not a prepared set"):
        run(data, "gs://bucket/sets/one")


def test_a_bucket_that_refuses(data, bucket):
    bucket.refusal = 403
    with pytest.raises(InputError, match="cannot use gs://bucket/sets/one"):
        run(data, "gs://bucket/sets/one")
