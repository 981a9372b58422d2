"""Runs whose workdir is in a bucket, against a local server that answers as Google Cloud Storage does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.fake_bucket import fake_storage
from support.helpers import of_a_program
from support.tiny_training import QUICKLY_COMPILED, tiny_run, train_on

import wroformer_jax
from wroformer_jax.checkpoints.model_dir import load_model
from wroformer_jax.cli.app import main
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import place
from wroformer_jax.training.initialisation import starting_params
from wroformer_jax.training.loop import PreemptedError
from wroformer_jax.training.trainer import train
from wroformer_jax.workdir.inspection import inspect_directory
from wroformer_jax.workdir.mirror import Mirror

pytest.importorskip("gcsfs")

ONE_OF_SEVERAL = Path(__file__).parents[1] / "support" / "one_of_several.py"
RUN = "gs://bucket/some runs/a"
LEFT = {
    "checkpoints", "config.json", "curve.png", "events", "example", "metrics.jsonl", "model.json", "songs",
    "spectrogram.png",
}  # fmt: skip


def tiny(**fields):
    return tiny_run(QUICKLY_COMPILED, validation={"songs": 1}, **fields)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted local run, and its scores."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(tiny(), workdir)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The objects that a run leaves in the bucket, and its scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WROFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        with fake_storage(patch, "bucket") as server:
            scores = train(tiny(), RUN)
            return dict(server.objects), scores


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache"))
    with fake_storage(monkeypatch, "bucket") as server:
        yield server


@pytest.fixture
def ended_bucket(bucket, ended):
    """The bucket with a run that has ended, and no local cache of it."""
    fill(bucket, ended[0])
    return bucket


def fill(bucket, objects):
    for key, content in objects.items():
        bucket.objects[key] = content


def left_by(objects):
    """Contents by their path in the workdir."""
    return {name.removeprefix("some runs/a/"): content for (_, name), content in objects.items()}


def saved_steps(bucket):
    return {name.split("/")[1] for name in left_by(bucket.objects) if name.startswith("checkpoints/")}


def another_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache of another machine"))


def assert_same_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, load_model(one)[1], load_model(other)[1])


def assert_ended_as(whole, bucket):
    assert left_by(bucket.objects)["metrics.jsonl"] == (whole[0] / "metrics.jsonl").read_bytes()
    assert_same_params(RUN, whole[0])


def train_while(happens):
    """Trains; `happens` is called with the number of each batch of this run, from 1, before its step."""

    def unchanged(batch, number):
        happens(number)
        return batch

    return train_on(unchanged, tiny(), RUN)


def test_a_run_in_a_bucket_equals_one_on_a_disk(whole, ended_bucket, ended):
    assert ended[1] == whole[1]
    assert_ended_as(whole, ended_bucket)
    assert {name.split("/")[0] for name in left_by(ended[0])} == LEFT
    assert saved_steps(ended_bucket) == {"6", "8"}
    assert not [name for name in left_by(ended[0]) if "/." in f"/{name}"]
    for name in ("config.json", "model.json"):
        assert left_by(ended[0])[name] == (whole[0] / name).read_bytes()


@pytest.mark.slow
def test_a_finished_run_writes_its_report_again(ended_bucket, ended, capsys):
    del ended_bucket.objects["bucket", "some runs/a/curve.png"]
    assert train(tiny(), f"{RUN}/") == ended[1]
    assert ended_bucket.objects["bucket", "some runs/a/curve.png"].startswith(b"\x89PNG")
    assert left_by(ended_bucket.objects)["metrics.jsonl"] == left_by(ended[0])["metrics.jsonl"]
    said = capsys.readouterr().out
    assert "going on from step 8" in said
    assert f"wroformer separate song.wav --checkpoint {RUN} --output separated" in said


@pytest.mark.slow
def test_a_killed_run_goes_on_on_another_machine(whole, bucket, monkeypatch, tmp_path):
    settings = {"workdir": RUN, "config": tiny().to_dict(), "sigkill": 7}
    command = [sys.executable, str(ONE_OF_SEVERAL), json.dumps(settings)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=of_a_program())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "4" in saved_steps(bucket)  # that of step 6 may have been under way
    assert "8" not in saved_steps(bucket)
    another_machine(monkeypatch, tmp_path)
    assert train(tiny(), RUN) == whole[1]
    assert_ended_as(whole, bucket)


@pytest.mark.slow
def test_a_preempted_run_goes_on_on_another_machine(whole, bucket, monkeypatch, tmp_path, capsys):
    def notice(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(PreemptedError, match=f"step 5 of 8 is saved in {RUN}"):
        train_while(notice)
    another_machine(monkeypatch, tmp_path)
    capsys.readouterr()
    train(tiny(), RUN)
    assert "going on from step 5" in capsys.readouterr().out
    assert_ended_as(whole, bucket)


@pytest.mark.slow
def test_a_damaged_step_is_skipped(whole, ended_bucket, caplog, capsys):
    for key, content in list(ended_bucket.objects.items()):
        if re.search("/checkpoints/8/params/.*d/", key[1]):
            ended_bucket.objects[key] = content[: len(content) // 2]
    wroformer_jax.load(RUN)
    assert "8 is damaged and passed over" in caplog.text
    train(tiny(), RUN)
    assert "8 is damaged, skipped and renamed to 8.damaged" in caplog.text
    assert "going on from step 6" in capsys.readouterr().out
    assert_ended_as(whole, ended_bucket)
    train(tiny(), RUN)
    assert saved_steps(ended_bucket) == {"6", "8", "8.damaged"}


@pytest.mark.slow
def test_a_step_whose_save_was_interrupted_does_not_count(whole, ended_bucket, caplog, capsys):
    del ended_bucket.objects["bucket", "some runs/a/checkpoints/8/commit_success.txt"]
    before = dict(ended_bucket.objects)
    wroformer_jax.load(RUN)
    assert ended_bucket.objects == before
    train(tiny(), RUN)
    assert "going on from step 6" in capsys.readouterr().out
    assert caplog.text == ""
    assert_ended_as(whole, ended_bucket)


@pytest.mark.slow
def test_a_bucket_that_refuses_for_a_while_ends_no_run(whole, bucket, caplog):
    def refuse(number):
        if number == 3:
            wait_for_step(bucket, 2)  # else its save, which is under way, may be refused or not
        bucket.refusal = 403 if 3 <= number <= 6 else None

    assert train_while(refuse) == whole[1]
    failed = re.findall(r"checkpoint (\d) could not be saved, the next save will try again: .*no access", caplog.text)
    assert failed == ["4", "6"]
    assert caplog.text.count("the log could not be uploaded") == 1
    assert saved_steps(bucket) == {"2", "8"}
    assert_ended_as(whole, bucket)


def wait_for_step(bucket, step):
    """Returns once a step is complete in the bucket."""
    for _ in range(6000):
        if f"checkpoints/{step}/commit_success.txt" in left_by(bucket.objects):
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} is not saved")


@pytest.mark.slow
def test_requests_to_a_busy_bucket_are_repeated(whole, bucket, caplog):
    def refuse(number):
        if number == 4:
            bucket.refusal, bucket.refusals_left = 503, 6

    assert train_while(refuse) == whole[1]
    assert bucket.refusals_left == 0
    assert caplog.text == ""
    assert_ended_as(whole, bucket)


@pytest.mark.slow
def test_a_last_state_that_cannot_be_saved_is_an_error(whole, bucket, caplog):
    def refuse(number):
        if number == 8:
            wait_for_step(bucket, 6)
            bucket.refusal, bucket.refused = 403, "^(POST|DELETE)"

    with pytest.raises(InputError, match=r"the last state could not be saved: .*no access"):
        train_while(refuse)
    assert re.search(r"the log could not be uploaded to \S+ runs/a yet and stays in \S+: cannot use", caplog.text)
    bucket.refusal = None
    train(tiny(), RUN)
    assert_ended_as(whole, bucket)


@pytest.mark.parametrize(
    "requests", ["/o$", "checkpoints/8/params/_METADATA", "checkpoints/8/params/ocdbt", "checkpoints/8/training/d/"]
)
def test_an_unreachable_step_is_not_taken_for_damaged(ended_bucket, requests):
    before = dict(ended_bucket.objects)
    ended_bucket.refusal, ended_bucket.refused = 403, f"^GET.*{requests}"
    with pytest.raises(InputError, match=r"^cannot use gs://bucket/some runs/a.*(PERMISSION_DENIED|Forbidden): "):
        train(tiny(), RUN)
    assert saved_steps(ended_bucket) == {"6", "8"}
    assert ended_bucket.objects.items() >= {key: before[key] for key in before if "/checkpoints/" in key[1]}.items()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"optimizer": {"learning_rate": 1e-3}}, r"a holds a run with optimizer\.learning_rate = \S+, not 0.001"),
        ({"steps": 9}, "a holds a run with steps = 8, not 9"),
    ],
)
def test_another_run_is_refused(ended_bucket, changed, sentence):
    before = dict(ended_bucket.objects)
    with pytest.raises(InputError, match=sentence):
        train(tiny(**changed), RUN)
    assert ended_bucket.objects == before


def test_another_model_is_refused(ended_bucket):
    key = ("bucket", "some runs/a/model.json")
    ended_bucket.objects[key] = ended_bucket.objects[key].replace(b'"dim_mask": 8', b'"dim_mask": 16')
    with pytest.raises(InputError, match=f"{RUN} holds the training of another model: its dim_mask is 16, not 8"):
        train(tiny(), RUN)
    del ended_bucket.objects["bucket", "some runs/a/config.json"]
    with pytest.raises(InputError, match=f"{RUN} holds a model but no config.json of a training"):
        train(tiny(), RUN)


def test_places_that_cannot_be_used(bucket, capfd):
    with pytest.raises(InputError, match=r"^cannot use gs://nowhere/a/config.json: there is no such bucket$"):
        train(tiny(), "gs://nowhere/a")
    with pytest.raises(InputError, match="s3://bucket/a: expected a local path, or one in a bucket of Google"):
        train(tiny(), "s3://bucket/a")
    bucket.refusal = 403
    with pytest.raises(InputError, match=f"^cannot use {RUN}/config.json: Forbidden: .*no access to storage.objects$"):
        train(tiny(), RUN)
    assert bucket.objects == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_without_gcsfs():
    code = """if True:
        import sys
        sys.modules["gcsfs"] = None
        import wroformer_jax
        wroformer_jax.load("gs://bucket/run")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("gs://bucket/run is in a bucket, which needs gcsfs: pip install 'wroformer-jax[gcs]'")


def test_a_run_is_inspected(ended_bucket, whole, capsys):
    found, local = inspect_directory(RUN), inspect_directory(whole[0])
    assert (found.newest, found.best) == (local.newest, local.best)
    assert found.records == local.records
    assert not any(step.problem for step in found.checkpoints)
    del ended_bucket.objects["bucket", "some runs/a/checkpoints/8/commit_success.txt"]
    assert inspect_directory(RUN).newest == "6"
    assert main(["inspect", RUN]) == 0
    assert "being written, or left by a crash" in capsys.readouterr().out


def test_the_model_of_a_run_is_loaded(ended_bucket, whole):
    model, params = wroformer_jax.load(RUN)
    assert model.config == tiny().model
    jax.tree.map(np.testing.assert_array_equal, params, load_model(whole[0])[1])
    with pytest.raises(InputError, match="carries its own settings"):
        wroformer_jax.load(RUN, config=tiny().model)
    with pytest.raises(InputError, match=r"gs://bucket/b has no model\.json"):
        wroformer_jax.load("gs://bucket/b")
    with pytest.raises(InputError, match=r"copy it with `gcloud storage cp gs://bucket/b.ckpt .`"):
        wroformer_jax.load("gs://bucket/b.ckpt")
    ended_bucket.refusal = 403
    with pytest.raises(InputError, match=f"cannot use {RUN}/model.json: Forbidden"):
        wroformer_jax.load(RUN)


def test_a_model_directory_is_loaded(bucket, whole, tmp_path):
    model, params = wroformer_jax.load(whole[0])
    wroformer_jax.save(tmp_path / "model", model, params)
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file():
            bucket.objects["bucket", f"b/{path.relative_to(tmp_path)}"] = path.read_bytes()
    jax.tree.map(np.testing.assert_array_equal, wroformer_jax.load("gs://bucket/b/model")[1], params)


def test_a_run_starts_from_one_in_a_bucket(ended_bucket, whole):
    params = starting_params(tiny(init=RUN))
    jax.tree.map(np.testing.assert_array_equal, params, load_model(whole[0])[1])


def test_two_runs_on_a_machine_do_not_share_a_directory(bucket):
    with (
        Mirror(place(RUN), 0),
        Mirror(place(RUN), 1),
        Mirror(place("gs://bucket/b"), 0),
        pytest.raises(InputError, match="in use by another run"),
        Mirror(place(RUN), 0),
    ):
        pass


def test_only_changed_files_are_uploaded(bucket):
    with Mirror(place(RUN), 0) as mirror:
        mirror.bring("a")
        (mirror.folder / "folder").mkdir()
        (mirror.folder / "a").write_text("1")
        (mirror.folder / "folder" / "ä").write_text("2")
        (mirror.folder / ".b-being written").write_text("3")
        mirror.copy()
        assert left_by(bucket.objects) == {"a": b"1", "folder/ä": b"2"}
        bucket.requests.clear()
        mirror.copy()
        assert bucket.requests == []
        with (mirror.folder / "a").open("a") as file:
            file.write("4")
        mirror.copy()
        assert {request for request in bucket.requests if "folder" in request} == set()
        assert bucket.objects["bucket", "some runs/a/a"] == b"14"
        (mirror.folder / "c").write_text("5")
    assert left_by(bucket.objects) == {"a": b"14", "folder/ä": b"2", "c": b"5"}
    with Mirror(place(RUN), 0) as mirror:
        assert list(mirror.folder.iterdir()) == []
        mirror.bring("a")
        assert (mirror.folder / "a").read_text() == "14"


def test_changed_files_are_uploaded_at_intervals(bucket):
    with Mirror(place(RUN), 0, interval=0.01) as mirror:
        (mirror.folder / "a").write_text("1")
        for _ in range(1000):
            if bucket.objects:
                break
            time.sleep(0.01)
        assert left_by(bucket.objects) == {"a": b"1"}
