"""Training: what it leaves, that it resumes exactly, and what it refuses."""

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.event_files import events_in, sound_of, steps_by_tag
from support.tiny_training import compiled_once, tiny

from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.data.loading import Batches
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import validation_songs
from wroformer_jax.io import files
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.training import loop, trainer, validation
from wroformer_jax.workdir import checkpoints, report
from wroformer_jax.workdir.ownership import claim


def assert_same_weights(one, other):
    params, others = load_model(one)[1], load_model(other)[1]
    assert jax.tree.structure(params) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, params, others)


def with_batches(change):
    """A stand-in for `loop.make_train_step`; each batch goes through `change(batch, its number in this run)`."""
    make = loop.make_train_step

    def make_changed(*args):
        step, numbers = make(*args), itertools.count()
        return lambda state, batch: step(state, change(batch, next(numbers)))

    return make_changed


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    with compiled_once():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and its scores."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, trainer.train(tiny(), workdir)


def test_leaves_what_it_promises(whole):
    import soundfile

    workdir, scores = whole
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "checkpoints", "config.json", "curve.png", "events", "example", "metrics.jsonl", "model.json",
        "songs", "spectrogram.png",
    }  # fmt: skip
    assert TrainingConfig.from_dict(json.loads((workdir / "config.json").read_text())) == tiny()
    assert list((workdir / "events").iterdir())
    wavs = {
        name: soundfile.read(workdir / "example" / f"{name}.wav")
        for name in ("mixture", "vocals", "instrumental", "vocals_reference")
    }
    assert all(rate == 16000 and audio.shape == (8000, 2) for audio, rate in wavs.values())
    sum_of_stems = wavs["vocals"][0] + wavs["instrumental"][0]
    np.testing.assert_allclose(sum_of_stems, wavs["mixture"][0], atol=1e-6)
    assert scores["improvement"] == pytest.approx(scores["vocals_usdr"] - scores["mixture_usdr"])


def test_records_are_complete(whole):
    workdir, scores = whole
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6, 8]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [0, 4, 8]
    assert {name: records[-1][name] for name in scores} == scores
    rates = [r["learning_rate"] for r in records if r["kind"] == "train"]
    assert max(rates) <= 3e-3
    assert rates[-1] < rates[0]


def test_tensorboard_gets_the_scalars(whole):
    [events] = (whole[0] / "events").glob("events*")
    written = events.read_bytes()
    for scalar in (b"train/loss", b"train/learning_rate", b"validation/vocals_usdr"):
        assert scalar in written


def test_tensorboard_gets_the_speed_and_excerpts(whole):
    events = whole[0] / "events"
    scalars, sounds, pictures = (steps_by_tag(events, kind) for kind in ("simple_value", "audio", "image"))
    for name in ("seconds_per_step", "data_wait", "audio_seconds_per_second"):
        assert scalars[f"speed/{name}"] == [2, 4, 6, 8]
    assert not {"speed/mfu", "speed/hbm_gib"} & scalars.keys()  # of a CPU neither is known
    for tags, kind in ((sounds, ""), (pictures, "_spectrogram")):
        assert {tag: steps for tag, steps in tags.items() if tag.startswith(f"song_2{kind}/")} == {
            f"song_2{kind}/vocals_estimate": [0, 4, 8],
            f"song_2{kind}/vocals_reference": [0],
            f"song_2{kind}/mixture": [0],
        }
    estimates = [sound_of(value)[0] for _, value in events_in(events) if value.tag == "song_1/vocals_estimate"]
    assert [estimate.shape for estimate in estimates] == [(2, 8000)] * 3
    assert not np.array_equal(estimates[0], estimates[2])


def test_a_workdir_loads_as_a_model(whole):
    import wroformer_jax

    model, params = wroformer_jax.load(whole[0])
    assert model.config == tiny().model
    jax.tree.map(np.testing.assert_array_equal, params, load_model(whole[0])[1])


def test_same_seed_same_numbers(whole, tmp_path):
    trainer.train(tiny(), tmp_path)
    assert_same_weights(whole[0], tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("steps_before_the_crash", [1, 5])
def test_resumes_exactly(whole, tmp_path, monkeypatch, capsys, steps_before_the_crash):
    def crash(batch, number):
        if number == steps_before_the_crash:
            raise MemoryError
        return batch

    monkeypatch.setattr(loop, "make_train_step", with_batches(crash))
    with pytest.raises(MemoryError):
        trainer.train(tiny(), tmp_path)
    monkeypatch.undo()
    capsys.readouterr()
    trainer.train(tiny(), tmp_path)
    first_line, *_ = capsys.readouterr().out.splitlines()
    assert first_line.startswith("starting" if steps_before_the_crash == 1 else "going on from step 4")
    assert_same_weights(whole[0], tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


KILLED_ON_THE_WAY = """
import itertools, json, os, signal, sys
from wroformer_jax import trainer
from wroformer_jax.training_config import TrainingConfig

make = loop.make_train_step

def make_killing(*args):
    step, numbers = make(*args), itertools.count()

    def kill(state, batch):
        if next(numbers) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, batch)

    return kill

loop.make_train_step = make_killing
trainer.train(TrainingConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def test_killed_and_restarted_it_ends_with_the_same_weights(whole, tmp_path):
    command = [sys.executable, "-c", KILLED_ON_THE_WAY, json.dumps(tiny().to_dict()), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "checkpoints" / "2").is_dir()  # that of step 4 may have been under way

    trainer.train(tiny(), tmp_path)
    assert_same_weights(whole[0], tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_a_finished_run_writes_its_report_again(whole, capsys):
    workdir, scores = whole
    metrics = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "curve.png").unlink()
    assert trainer.train(tiny(), workdir) == scores
    first_line, *lines = capsys.readouterr().out.splitlines()
    assert first_line.startswith("going on from step 8")
    assert lines[-2:] == [
        f"  wroformer separate song.wav --checkpoint {workdir} --output separated",
        f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)",
    ]
    assert (workdir / "curve.png").exists()
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_songs_that_are_all_to_train_on(tmp_path, capsys):
    config = tiny(validation_songs=0, steps=2)
    assert trainer.train(config, tmp_path) == {}
    printed = capsys.readouterr().out
    assert "there are no songs to validate on" in printed
    assert "\ndone\n" in printed
    assert (tmp_path / "curve.png").exists()
    assert not (tmp_path / "example").exists()


def test_a_lost_log_is_no_obstacle(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").unlink()
    assert trainer.train(tiny(), tmp_path / "copy") == whole[1]


def test_how_often_things_are_written_may_change(whole):
    assert trainer.train(tiny(log_every=4, validate_every=8, checkpoint_every=8), whole[0]) == whole[1]
    claim(whole[0], tiny())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": {"dim": 16}}, r"model.dim = 8, not 16.*choose another workdir"),
        ({"model": {"dtype": "bfloat16"}}, r"model.dtype = 'float32', not 'bfloat16'"),
        ({"steps": 9}, r"steps = 8, not 9"),
        ({"learning_rate": 1e-3}, r"learning_rate = 0.003, not 0.001"),
    ],
)
def test_other_settings_are_refused(whole, changed, sentence):
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=sentence):
        trainer.train(tiny(**changed), whole[0])
    assert {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("role", "weights", "sentence"),
    [("init", {}, r"init \S+ is a model with stems = "), ("teacher", {"masks": 1}, "the teacher has stems = ")],
)
def test_a_checkpoint_of_another_kind_leaves_no_workdir(tmp_path, role, weights, sentence):
    model = RoFormer(tiny(model={"stems": ["drums"]}).model)
    save_model(tmp_path / "other", model.config, init_params(model, 0))
    fields = {role: str(tmp_path / "other"), "loss_weights": {"l1": 1, "stft": 1, "masks": 0, **weights}}
    with pytest.raises(InputError, match=sentence):
        trainer.train(tiny(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mesh": {"data": 2, "fsdp": 1, "seq": 1}}, "mesh is data=2, .*takes 2 devices, but there are 1"),
        ({"batch_size": 3, "accumulate": 2}, "batch_size is 3, which does not divide over the mesh"),
        ({"model": {"stems": ["guitar"]}, "data": True}, "no song .*guitar|'guitar'"),
        ({"freeze": ["blockz"]}, "freeze has 'blockz', which matches no parameter"),
        ({"learning_rate_scales": [["sinks", 10]]}, "learning_rate_scales has 'sinks', which matches no parameter"),
    ],
)
def test_it_is_refused_before_anything_is_compiled_or_written(whole, tmp_path, monkeypatch, changed, sentence):
    monkeypatch.setattr(loop, "make_train_step", lambda *_: pytest.fail("it compiles"))
    if "data" in changed:
        changed = {**changed, "data": str(whole[0] / "songs")}
    with pytest.raises(InputError, match=sentence):
        trainer.train(tiny(**changed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_notice_during_a_validation_saves_the_step_at_once(whole, tmp_path, monkeypatch):
    score, numbers = validation.separate_and_score, itertools.count(1)

    def notice(*args, **kwargs):
        if (number := next(numbers)) == 3:  # the first of the two songs after step 4
            os.kill(os.getpid(), signal.SIGTERM)
        assert number < 4
        return score(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "separate_and_score", notice)
        with pytest.raises(loop.PreemptedError, match="step 4 of 8 is saved"):
            trainer.train(tiny(), tmp_path)
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert trainer.train(tiny(), tmp_path) == whole[1]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert_same_weights(tmp_path, whole[0])


def test_a_run_that_goes_on_reads_no_init(whole, tmp_path, monkeypatch):
    def read(_):
        raise InputError("the checkpoint to start from is gone")

    shutil.copytree(whole[0], tmp_path / "copy")
    monkeypatch.setattr(trainer, "starting_params", read)
    assert trainer.train(tiny(), tmp_path / "copy") == whole[1]
    with pytest.raises(InputError, match="is gone"):
        trainer.train(tiny(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"steps": 8}', '{"nonsense": 1}'])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json is not the config of a training run"):
        trainer.train(tiny(), tmp_path)


def test_a_model_directory_is_not_a_workdir(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a model but no config\.json"):
        trainer.train(tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"cannot write {workdir}: "):
            trainer.train(tiny(), workdir)


def test_a_workdir_that_another_run_uses_is_left_alone(whole):
    config, workdir = tiny(), whole[0]
    before = (workdir / "metrics.jsonl").stat().st_ino
    with files.locked(workdir), pytest.raises(InputError, match="in use by another run"):
        trainer.train(config, workdir)
    assert (workdir / "metrics.jsonl").stat().st_ino == before
    with files.locked(workdir):
        pass  # let go after an error too


def test_a_disk_that_fills_up_is_named(whole, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report.plots, "save_curves", full)
    with pytest.raises(InputError, match=f"cannot write {whole[0]}: the disk is full"):
        trainer.train(tiny(), whole[0])


def test_saves_that_fail_end_the_run_only_at_its_end(whole, tmp_path, monkeypatch, caplog):
    def full(directory, _):
        if directory.name == "checkpoints":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "check_space", full)
        with pytest.raises(InputError, match=r"the last state could not be saved: .*the disk is full"):
            trainer.train(tiny(), tmp_path)
    assert [f"checkpoint {step} is not saved" in caplog.text for step in (2, 4, 6, 8)] == [True] * 4
    trainer.train(tiny(), tmp_path)
    assert_same_weights(whole[0], tmp_path)


@pytest.mark.parametrize("step", [3, 4])  # between two logs, and where a validation is due
def test_a_notice_of_preemption_saves_the_step_under_way(whole, tmp_path, monkeypatch, capsys, step):
    def notice(batch, number):
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", with_batches(notice))
        with pytest.raises(loop.PreemptedError, match=f"step {step} of 8 is saved in {tmp_path}"):
            trainer.train(tiny(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    capsys.readouterr()
    trainer.train(tiny(), tmp_path)
    assert capsys.readouterr().out.startswith(f"going on from step {step}")
    assert_same_weights(whole[0], tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_workers_that_got_the_notice_too_are_no_obstacle(tmp_path, monkeypatch):
    give, numbers = Batches.__next__, itertools.count(1)

    def die_once(loader):
        if next(numbers) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            raise InputError("a worker that loads batches has died")
        return give(loader)

    monkeypatch.setattr(Batches, "__next__", die_once)
    with pytest.raises(loop.PreemptedError, match="step 3 of 8 is saved"):
        trainer.train(tiny(), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_is_read_only_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        trainer.train(tiny(), tmp_path)


@pytest.fixture
def traces(monkeypatch):
    """What begins and ends a trace. Runs that are traced are compiled like those that are not."""
    calls = []
    for name in ("start_trace", "stop_trace"):
        act = getattr(jax.profiler, name)
        noted = lambda *args, name=name, act=act: (calls.append(name), act(*args))  # noqa: E731
        monkeypatch.setattr(jax.profiler, name, noted)
    for module, name in ((loop, "make_train_step"), (trainer, "abstract_state"), (trainer, "initial_state")):
        make = getattr(module, name)
        untraced = lambda config, *rest, make=make: make(dataclasses.replace(config, profile_steps=()), *rest)  # noqa: E731
        monkeypatch.setattr(module, name, untraced)
    return calls


def traced_files(workdir):
    return list((workdir / "profile").rglob("*.xplane.pb"))


def test_a_trace_of_some_steps(whole, tmp_path, traces, capsys):
    trainer.train(tiny(profile_steps=(3, 4)), tmp_path)
    assert traces == ["start_trace", "stop_trace"]
    [trace] = traced_files(tmp_path)
    assert trace.stat().st_size
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    lines = capsys.readouterr().out.splitlines()
    for step in (2, 4, 6, 8):
        [line] = [line for line in lines if line.startswith(f"step {step}/8: loss ")]
        assert re.fullmatch(
            rf"step {step}/8: loss \d+\.\d{{4}}, SDR -?\d+\.\d\d dB, [\d.e+]+ s of audio per second, "
            r"[\d.e-]+ s per step, \d+% waiting for data",
            line,
        )


def test_a_trace_ends_when_the_run_is_preempted_and_a_resumed_one_has_none(tmp_path, traces, monkeypatch):
    def notice(batch, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    config = tiny(profile_steps=(3, 6))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", with_batches(notice))
        with pytest.raises(loop.PreemptedError, match="step 4 of 8 is saved"):
            trainer.train(config, tmp_path)
    assert traces == ["start_trace", "stop_trace"]
    assert len(traced_files(tmp_path)) == 1
    trainer.train(config, tmp_path)  # steps 5 to 8
    assert traces == ["start_trace", "stop_trace"]


def test_a_trace_ends_with_an_error(tmp_path, traces, monkeypatch):
    def fail(batch, number):
        if number == 3:
            raise MemoryError
        return batch

    monkeypatch.setattr(loop, "make_train_step", with_batches(fail))
    with pytest.raises(MemoryError):
        trainer.train(tiny(profile_steps=(3, 8)), tmp_path)
    assert traces == ["start_trace", "stop_trace"]


def nan_batches(first, last):
    def change(batch, number):
        bad = first <= number + 1 <= last
        return {name: audio * np.float32(np.nan if bad else 1) for name, audio in batch.items()}

    return with_batches(change)


def test_steps_that_are_not_finite_are_skipped_and_counted(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "make_train_step", nan_batches(2, 3))
    trainer.train(tiny(), tmp_path)
    records, others = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path, whole[0])
    )
    train, undisturbed = ([r for r in lines if r["kind"] == "train"] for lines in (records, others))
    assert [r["skipped"] for r in train] == [1, 2, 2, 2]
    assert [r["skipped_in_a_row"] for r in train] == [1, 0, 0, 0]
    assert [r["skipped"] for r in undisturbed] == [0, 0, 0, 0]
    assert all(np.isfinite(value) for r in train for name, value in r.items() if name != "kind")
    assert train[0]["loss"] != undisturbed[0]["loss"]  # of the first step alone
    said = capsys.readouterr().out
    assert (
        "step 2: 1 of the last 2 steps were skipped, because their loss or gradient was not finite (1 so far)" in said
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(tmp_path)[1]))


def test_an_interval_without_a_finite_step_has_no_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "make_train_step", nan_batches(3, 4))
    trainer.train(tiny(), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 6, 8]
    assert "step 4: 2 of the last 2 steps were skipped" in capsys.readouterr().out


def test_a_run_of_which_every_step_is_skipped_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_train_step", nan_batches(1, 8))
    with pytest.raises(InputError, match="not finite at 2 steps in a row"):
        trainer.train(tiny(steps=2), tmp_path)


@pytest.mark.parametrize("bad_step", [1, 5])
def test_divergence_is_named_and_its_batch_kept(tmp_path, monkeypatch, bad_step):
    monkeypatch.setattr(loop, "make_train_step", nan_batches(bad_step, 8))
    with pytest.raises(
        InputError, match=rf"not finite at 3 steps in a row, the last of them step {bad_step + 2}, whose"
    ):
        trainer.train(tiny(), tmp_path)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == (["2"] if bad_step == 1 else ["4", "6"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(tmp_path)[1]))
    with np.load(tmp_path / "bad_batch.npz") as batch:
        assert batch["mixture"].shape == (2, 2, tiny().crop_samples)
        assert batch["targets"].shape == (2, 1, 2, tiny().crop_samples)


def test_validation_scores_each_stem(monkeypatch):
    config = tiny(model={"stems": ["vocals", "drums"]}).model
    rng = np.random.default_rng(0)
    songs = [
        validation_songs.ValidationSong(*np.split(0.1 * rng.standard_normal((3, 2, 7999), dtype=np.float32), [1]))
        for _ in range(2)
    ]
    songs = [validation_songs.ValidationSong(song.mixture[0], song.targets) for song in songs]
    songs[1].targets[1] = 0
    halved = lambda *args, **kwargs: 0.5 * next(targets)  # noqa: E731
    targets = (song.targets for song in songs)
    monkeypatch.setattr(validation_songs, "separate_song", halved)
    model = RoFormer(config)
    each = [validation_songs.separate_and_score(model, None, song, chunk_seconds=None) for song in songs]
    scores = validation_songs.mean_scores(config.stems, each)
    assert scores.keys() == {"vocals_usdr", "drums_usdr", "usdr", "mixture_usdr", "improvement"}
    for name in ("vocals_usdr", "drums_usdr", "usdr"):
        assert scores[name] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert scores["improvement"] == pytest.approx(scores["usdr"] - scores["mixture_usdr"])


@pytest.mark.parametrize("chunk_seconds", [None, 0.2])
def test_validation_separates_songs_of_any_length(chunk_seconds):
    model, params = RoFormer(tiny().model), init_params(RoFormer(tiny().model), 0)
    mixture = 0.1 * np.random.default_rng(0).standard_normal((2, 7999), dtype=np.float32)
    assert validation_songs.separate_song(model, params, mixture, chunk_seconds=chunk_seconds).shape == (1, 2, 7999)
