"""Several processes: how they find each other, agree, and train one model."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.fake_bucket import fake_storage
from support.helpers import free_port, of_a_program
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints.model_dir import load_model
from wroformer_jax.errors import InputError
from wroformer_jax.parallel import processes as hosts
from wroformer_jax.workdir import ownership as workdir_module
from wroformer_jax.workdir.ownership import check_shared, claim

ROOT = Path(__file__).parents[2]
MESH = {"data": 4, "fsdp": 2, "seq": 1}


def config(**fields):
    several = tiny_run(
        batch_size=8,
        mesh=MESH,
        optimizer={"ema": 0.9, "max_skipped": 2},
        validation={"songs": 3},  # two for the first process, one for the other
    )
    return several.with_changes(**fields)


def run(workdir, *each, devices=4):
    """Runs a process for each mapping of events; returns each one's status and its lines on stderr."""
    port = free_port()
    running = []
    for process, events in enumerate(each):
        settings = {"workdir": str(workdir), "config": config().to_dict(), "devices": devices, **events}
        if len(each) > 1:
            settings |= {"port": port, "process": process, "processes": len(each)}
        command = [sys.executable, str(ROOT / "tests" / "support" / "one_of_several.py"), json.dumps(settings)]
        running.append(
            subprocess.Popen(command, env=of_a_program(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    ended = []
    try:
        for process in running:
            _, said = process.communicate(timeout=240)
            ended.append((process.returncode, [line for line in said.splitlines() if "[Gloo]" not in line]))
    finally:
        for process in running:
            process.kill()
    return ended


def curves(workdir):
    """Returns the losses and the validation scores of a run."""
    records = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
    return [[record[name] for record in records if name in record] for name in ("loss", "usdr")]


def num_that_differ(one, other):
    both = (jax.tree.leaves(load_model(path)[1]) for path in (one, other))
    return sum(a.tobytes() != b.tobytes() for a, b in zip(*both, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes of four devices each that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert run(workdir, {}, {}) == [(0, []), (0, [])]
    return workdir


@pytest.mark.slow
def test_killed_and_preempted_two_processes_end_with_the_same_weights(whole, tmp_path):
    workdir = tmp_path / "run"
    (first, _), (second, _) = run(workdir, {"sigkill": 6}, {"sigkill": 6})
    assert (first, second) == (-9, -9)
    assert not (workdir / "checkpoints" / "8").exists()
    # If one process gets SIGTERM, both save the same step.
    ended = run(workdir, {}, {"sigterm": 1})
    assert [status for status, _ in ended] == [143, 143]
    assert all(f"of 8 is saved in {workdir}" in said[-1] for _, said in ended)
    assert run(workdir, {}, {}) == [(0, []), (0, [])]
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert num_that_differ(whole, workdir) == 0


@pytest.mark.slow
def test_two_processes_with_a_bucket_go_on_on_other_machines(whole, tmp_path, monkeypatch):
    workdir = "gs://bucket/run"
    monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "cache"))
    with fake_storage(monkeypatch, "bucket") as bucket:
        assert [status for status, _ in run(workdir, {"sigkill": 7}, {"sigkill": 7})] == [-9, -9]
        assert ("bucket", "run/checkpoints/4/commit_success.txt") in bucket.objects
        monkeypatch.setenv("WROFORMER_CACHE", str(tmp_path / "another cache"))
        assert [status for status, _ in run(workdir, {}, {})] == [0, 0]
        assert bucket.objects["bucket", "run/metrics.jsonl"] == (whole / "metrics.jsonl").read_bytes()
        assert num_that_differ(whole, workdir) == 0


@pytest.mark.parametrize(("processes", "mesh"), [(1, MESH), (2, {"data": 1, "fsdp": 1, "seq": 8})], ids=str)
@pytest.mark.slow
def test_a_run_goes_on_elsewhere(whole, tmp_path, processes, mesh):
    """In one process; and with the time of each example cut over both of them."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "8")
    saved = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints" / "4").rglob("*") if path.is_file()}
    events = {"config": config(mesh=mesh).to_dict()}
    assert run(workdir, *[events] * processes, devices=8 // processes) == [(0, [])] * processes
    assert all(path.stat().st_mtime_ns == time for path, time in saved.items())  # it did not begin again
    for one, other in zip(curves(workdir), curves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.slow
def test_a_form_of_attention_that_fails_in_one_process_is_used_by_none(whole, tmp_path):
    workdir = tmp_path / "run"
    settings = {"config": config(model={"attention_impl": "interpret"}).to_dict()}
    (first, nothing), (second, said) = run(workdir, settings | {"form": "works"}, settings | {"form": "fails"})
    assert (first, second, nothing) == (0, 0, [])
    [line] = said
    assert line.endswith("'interpret', which was tried on cpu: it fails with RuntimeError: no such instruction")
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_batches_that_are_no_numbers_end_all_processes(tmp_path):
    workdir = tmp_path / "run"
    ended = run(workdir, {}, {"nan": [1, 8]})  # those of one of them alone
    assert [status for status, _ in ended] == [2, 2]
    assert all("not finite at 2 steps in a row, the last of them step 2" in said[-1] for _, said in ended)
    for process in range(2):
        with np.load(workdir / f"bad_batch-{process}.npz") as batch:
            assert batch["mixture"].shape == (4, 2, config().crop_samples)


@pytest.mark.slow
def test_hosts_with_different_settings_are_refused(tmp_path):
    other = {"config": config(optimizer={"learning_rate": 1e-4}).to_dict()}
    ended = run(tmp_path / "run", {}, other)
    assert [status for status, _ in ended] == [2, 2]
    for _, said in ended:
        assert said[-1].startswith(
            "the hosts have different settings: process 1 has optimizer.learning_rate = 0.0001, the first one 0.003"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("localhost:1", 2, None),
            "--process_id is missing: --coordinator, --num_processes and --process_id go together",
        ),
        ((None, 2, 0), "--coordinator is missing"),
        (("localhost", 2, 0), "--coordinator is 'localhost', expected HOST:PORT"),
        (("localhost:1", 0, 0), "--num_processes is 0, expected a number of at least 1"),
        (("localhost:1", 2, 2), "--process_id is 2, expected a number from 0 to 1"),
    ],
)
def test_wrong_ways_to_join(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        hosts.connect(*arguments)


def test_a_single_host_joins_nobody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("it did"))
    hosts.connect()
    for name, value in (("TPU_WORKER_HOSTNAMES", "localhost"), ("SLURM_STEP_NUM_TASKS", "1")):
        monkeypatch.setenv(name, value)
        hosts.connect()


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_WORKER_HOSTNAMES": "10.0.0.2,10.0.0.3"},
        {"MEGASCALE_NUM_SLICES": "2"},
        {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_several_hosts_are_seen_in_the_environment(monkeypatch, environment):
    joined = itertools.count()
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: next(joined))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hosts.connect()
    assert next(joined) == 1


@pytest.fixture
def tpu_host(monkeypatch):
    """This machine seems to have a TPU, and no variable says whether it is part of a pod."""
    monkeypatch.setattr("glob.glob", lambda _: ["/dev/accel0"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("tpu_host")
def test_a_tpu_of_which_nobody_says_that_it_is_part_of_a_pod_is_a_single_host(monkeypatch):
    def find_none(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", find_none)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    hosts.connect()
    with pytest.raises(InputError, match=r"cannot join the other processes .coordinator_address should be defined"):
        hosts.connect("localhost:1", 2, 0)


def test_one_process_agrees_with_itself():
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    assert hosts.together(lambda: 3) == 3
    with pytest.raises(InputError, match="wrong"):
        hosts.together(fail)
    hosts.check_same({"a": {"b": 1}})
    with pytest.raises(ZeroDivisionError):  # what is no InputError stays what it is
        hosts.in_first(lambda: 1 / 0)


def test_a_workdir_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    claim(tmp_path, config())
    check_shared(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(workdir_module, "together", lambda work: work())
    monkeypatch.setattr(workdir_module, "gather", lambda text: [text, text])
    check_shared(tmp_path)
    monkeypatch.setattr(workdir_module, "gather", lambda text: [text, None])
    with pytest.raises(
        InputError, match=r"process 1 does not see the workdir \S+ of the first process: all hosts need a shared"
    ):
        check_shared(tmp_path)


@pytest.mark.usefixtures("tpu_host")
def test_what_platform_is_asked_for(monkeypatch):
    for platforms, asks in (("", True), ("tpu", True), ("tpu,cpu", True), ("cpu", False)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert hosts.asks_metadata_server() == asks


def fail():
    raise InputError("wrong")
