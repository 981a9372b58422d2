"""Batches: the same for any number of workers and processes and after restarts; and errors of workers."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.tiny_set import five_songs, make_set, noise

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.data.loading import Loading, Share, batches, fits_into_shared_memory
from wroformer_jax.errors import InputError

LOADING = Loading(crop_samples=700, batch_size=4, targets=("vocals", "bass"), seed=3, workers=0)

# Writes the state after each batch, then the digest of the batch, and its worker's process id.
CONSUMER = """
import json, multiprocessing, signal, sys
from test_loading import LOADING, batches, dataclasses, digest
from wroformer_jax.data.record_set import RecordSet

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    with batches(RecordSet.open(sys.argv[1]), "train", dataclasses.replace(LOADING, workers=1)) as loader:
        for batch in loader:
            [worker] = multiprocessing.active_children()
            line = {"digest": digest(batch), "state": loader.get_state(), "worker": worker.pid}
            print(json.dumps(line), flush=True)
"""


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), five_songs())


@pytest.fixture(scope="module")
def reference(record_set):
    """Returns the digests of the first batches, from one uninterrupted iterator."""
    return take(record_set, 12)


def digest(batch):
    return hashlib.sha256(batch["mixture"].tobytes() + batch["targets"].tobytes()).hexdigest()


def take(record_set, number, **fields):
    with batches(record_set, "train", dataclasses.replace(LOADING, **fields)) as loader:
        return [digest(next(loader)) for _ in range(number)]


def test_shapes(record_set):
    with batches(record_set, "train", LOADING) as loader:
        batch = next(loader)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "mixture": ((4, 2, 700), np.float32),
        "targets": ((4, 2, 2, 700), np.float32),
    }
    assert loader.seconds_waited > 0


def test_batches_are_a_function_of_the_seed(record_set, reference):
    assert take(record_set, 12) == reference
    assert len(set(reference)) == len(reference)
    assert not set(take(record_set, 2, seed=4)) & set(reference)


def test_every_epoch_has_each_song_once_in_another_order(tmp_path):
    songs = {f"song {n}": {"vocals": np.full((2, 500), n / 64, np.float32)} for n in range(8)}
    record_set = make_set(tmp_path, songs)
    loading = Loading(crop_samples=500, batch_size=8, targets=("vocals",), workers=0, augmentation=Augmentation.none())
    with batches(record_set, "train", loading) as loader:
        epochs = [(64 * next(loader)["mixture"][:, 0, 0]).astype(int).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_four_processes_put_together_have_the_batches_of_one(record_set):
    with batches(record_set, "train", LOADING) as loader:
        whole = [next(loader) for _ in range(3)]
    parts = []
    for index in range(4):
        with batches(record_set, "train", LOADING, Share((index,))) as loader:
            parts.append([next(loader) for _ in range(3)])
            state = loader.get_state()
    for step, batch in enumerate(whole):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([part[step][name] for part in parts]))
    with batches(record_set, "train", LOADING) as loader:  # a single process resumes with the state of one of four
        loader.set_state(state)
        assert loader.get_state() == state


@pytest.mark.parametrize("with_worker", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shares_are_parts_of_the_rows_and_of_time_of_the_batches_of_one(record_set, with_worker):
    loading = dataclasses.replace(LOADING, augmentation=Augmentation(time_inversion=0.5))
    with batches(record_set, "train", loading) as loader:
        whole = [next(loader) for _ in range(3)]
        state = loader.get_state()
    padded = [
        {name: np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 200)]) for name, array in batch.items()}
        for batch in whole
    ]
    for part, start in itertools.product(range(2), (0, 300, 600)):  # 700 samples as three spans of 300
        workers = int(with_worker and (part, start) == (1, 300))  # one of the shares is loaded by a worker
        share = Share((2 * part, 2 * part + 1), start, start + 300)
        with batches(record_set, "train", dataclasses.replace(loading, workers=workers), share) as loader:
            for batch in padded:
                for name, array in next(loader).items():
                    assert array.tobytes() == batch[name][2 * part : 2 * part + 2, ..., start : start + 300].tobytes()
            assert loader.get_state() == state


def test_a_run_goes_on_with_another_share(record_set):
    with batches(record_set, "train", LOADING, Share((2, 3), 350)) as loader:
        next(loader)
        state = loader.get_state()
    with batches(record_set, "train", LOADING) as loader:
        next(loader)
        second = next(loader)
    with batches(record_set, "train", LOADING, Share((0,), 100, 200)) as loader:
        loader.set_state(state)
        np.testing.assert_array_equal(next(loader)["targets"], second["targets"][:1, ..., 100:200])


def test_shared_memory_holds_the_share_only(monkeypatch):
    loading = dataclasses.replace(LOADING, workers=1, prefetch=1)  # three batches at a time
    example = 4 * 2 * 3 * 700  # bytes: float32, stereo, the mixture and two targets
    free = type("Usage", (), {"free": 3 * 4 * example})  # one byte less than this is allowed
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    fits = [
        fits_into_shared_memory(loading, share)
        for share in (Share(), Share((0, 1)), Share(stop=699), Share(start=1), Share(start=600, stop=1300))
    ]
    assert fits == [False, True, True, True, False]


def test_a_worker_and_restarts_change_nothing(record_set, reference):
    with batches(record_set, "train", dataclasses.replace(LOADING, workers=1)) as loader:
        assert [digest(next(loader)) for _ in range(3)] == reference[:3]
        assert len(multiprocessing.active_children()) == 1
        state = json.loads(json.dumps(loader.get_state()))
    assert not multiprocessing.active_children()
    alone = batches(record_set, "train", LOADING)
    alone.set_state(state)
    assert [digest(next(alone)) for _ in range(2)] == reference[3:5]
    alone.close()
    assert digest(next(alone)) == reference[5]  # a closed iterator continues where it was
    alone.close()


@pytest.mark.slow
def test_several_workers_and_pipes_change_nothing(record_set, reference, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    with batches(record_set, "train", dataclasses.replace(LOADING, workers=1)) as loader:  # through a pipe
        assert [digest(next(loader)) for _ in range(3)] == reference[:3]
        state = json.loads(json.dumps(loader.get_state()))
    monkeypatch.undo()
    resumed = batches(record_set, "train", dataclasses.replace(LOADING, workers=2, prefetch=1))
    resumed.set_state(state)
    assert [digest(next(resumed)) for _ in range(3)] == reference[3:6]
    assert len(multiprocessing.active_children()) == 2
    resumed.close()
    assert not multiprocessing.active_children()


@pytest.fixture
def consumer(record_set, tmp_path):
    """Starts the consumer in a session of its own, like a command in a terminal, and kills it after the test."""
    script = tmp_path / "consumer.py"
    script.write_text(CONSUMER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:3]))}
    command = [sys.executable, str(script), record_set.path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, start_new_session=True) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_killed_and_resumed(record_set, reference, consumer):
    seen = [json.loads(consumer.stdout.readline()) for _ in range(5)]
    consumer.kill()
    assert [line["digest"] for line in seen] == reference[:5]
    with batches(record_set, "train", LOADING) as loader:
        loader.set_state(seen[-1]["state"])
        assert [digest(next(loader)) for _ in range(7)] == reference[5:]
    wait_for_the_end_of(seen[-1]["worker"])


@pytest.mark.slow
def test_an_interrupt_is_for_the_main_process_alone(consumer):
    line = json.loads(consumer.stdout.readline())
    os.killpg(consumer.pid, signal.SIGINT)
    _, complaints = consumer.communicate(timeout=60)
    assert complaints.count("Traceback") == 1
    assert complaints.endswith("KeyboardInterrupt\n")
    wait_for_the_end_of(line["worker"])


def wait_for_the_end_of(process_id):
    deadline = time.monotonic() + 20
    while is_running(process_id):
        assert time.monotonic() < deadline, f"the worker {process_id} outlives its main process"
        time.sleep(0.05)


def is_running(process_id):
    try:
        return ") Z " not in Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_damage_is_reported_each_time(tmp_path, workers):
    record_set = make_set(tmp_path, {"a": {"vocals": noise(0, 3)}}, encoding="int16")
    [shard] = tmp_path.glob("*.array_record-*")
    content = bytearray(shard.read_bytes())
    for position in range(2000, len(content) - 1000, 500):
        content[position] ^= 0xFF
    shard.write_bytes(content)
    sentences = []
    for number in {0, workers}:  # workers say the same as a process that loads by itself
        loading = dataclasses.replace(LOADING, targets=("vocals",), workers=number)
        with batches(record_set, "train", loading) as loader:
            for _ in range(2):  # the next call fails, too
                with pytest.raises(InputError) as error:
                    next(loader)
                sentences.append(str(error.value))
    assert len(set(sentences)) == 1
    assert f"{shard.name} cannot be read at segment" in sentences[0]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported_and_replaced(record_set, reference):
    with batches(record_set, "train", dataclasses.replace(LOADING, workers=1)) as loader:
        found = [digest(next(loader))]
        [worker] = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(InputError, match=r"a worker that loads batches has died .*exit code -9"):
            found.extend(digest(batch) for batch in loader)  # finished batches come first
        found.append(digest(next(loader)))
    assert found == reference[: len(found)]


def test_a_state_of_something_else(record_set, tmp_path):
    def resume(other, **fields):
        batches(other, "train", dataclasses.replace(LOADING, **fields)).set_state(state)

    state = batches(record_set, "train", LOADING).get_state()
    resume(record_set, workers=3, prefetch=7)
    with pytest.raises(InputError, match="had batch_size = 4, not 8: set it back"):
        resume(record_set, batch_size=8)
    with pytest.raises(InputError, match=r"had augmentation.gain_range = \[0.5, 1.5\], not \[1, 2\]: set it back"):
        resume(record_set, augmentation=Augmentation(gain_range=[1, 2]))
    with pytest.raises(InputError, match="belong to another set than"):
        resume(make_set(tmp_path, {"a": {"vocals": noise(0, 1), "bass": noise(1, 1)}}))
    for number in (None, -1, "3"):
        with pytest.raises(InputError, match=f"begin at number {number!r}, expected a whole number"):
            batches(record_set, "train", LOADING).set_state({**state, "batch": number})
    state = {"next_index": 7}
    with pytest.raises(InputError, match="belong to another set than"):
        resume(record_set)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"crop_samples": 0}, "crop_samples is 0, expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected a whole number of at least 1"),
        ({"workers": -1}, "workers is -1, expected a whole number of at least 0"),
        ({"prefetch": 0}, "prefetch is 0, expected a whole number of at least 1"),
        ({"channels": 3}, "channels is 3, expected a whole number of at least 1 and of at most 2"),
        ({"seed": 2**32}, "seed is 4294967296, expected a whole number of at least 0 and of at most 4294967295"),
        ({"targets": ()}, "targets is empty, expected at least one name of a stem"),
        ({"targets": "vocals"}, "targets is 'vocals', expected a list of names"),
        ({"stems": ("bass", "Bass")}, "stems names a stem twice: bass, Bass"),
    ],
)
def test_impossible_settings(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(LOADING, **fields)


def test_rows_that_a_batch_does_not_have(record_set):
    with pytest.raises(InputError, match="rows has 4, expected numbers below batch_size, which is 4"):
        batches(record_set, "train", LOADING, Share((0, 4)))


def test_a_stretch_without_an_end_that_begins_behind_the_examples(record_set):
    batches(record_set, "train", LOADING, Share(start=699)).close()
    batches(record_set, "train", LOADING, Share(start=700, stop=701)).close()
    with pytest.raises(
        InputError, match="start is 700, expected a number below crop_samples, which is 700, or a stop beyond it"
    ):
        batches(record_set, "train", LOADING, Share(start=700))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rows": ()}, "rows is .*, expected numbers that ascend, at least one"),
        ({"rows": (1, 0)}, "rows is .*, expected numbers that ascend, at least one"),
        ({"rows": (-1, 0)}, "rows is -1, expected a whole number of at least 0"),
        ({"start": -1}, "start is -1, expected a whole number of at least 0"),
        ({"start": 350.0}, "start is 350.0, expected a whole number of at least 0"),
        ({"start": 350, "stop": 350}, "stop is 350, expected a whole number of at least 351"),
    ],
)
def test_impossible_shares(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Share(**fields)


def test_a_target_that_there_is_not(record_set):
    with pytest.raises(InputError, match="target 'piano' is not a stem"):
        batches(record_set, "train", dataclasses.replace(LOADING, targets=("piano",)))
