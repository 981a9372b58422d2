"""Training: what it leaves, that it resumes exactly, and what it refuses."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from wroformer_jax import evaluate, files, trainer
from wroformer_jax.checkpoint import load_model
from wroformer_jax.errors import InputError
from wroformer_jax.model import RoFormer
from wroformer_jax.training_config import TrainingConfig

MODEL = {
    "num_bands": 6,
    "sample_rate": 16000,
    "stft_n_fft": 256,
    "stft_hop_length": 128,
    "stft_win_length": 256,
    "dim": 8,
    "depth": 1,
    "heads": 1,
    "dim_head": 4,
    "dim_feed_forward": 8,
    "mask_layers": 2,
    "dim_mask": 8,
    "window": 4,
    "num_sinks": 2,
    "remat": False,
}
TRAINING = {
    "seed": 3,
    "steps": 8,
    "batch_size": 2,
    "data": "",
    "stems": (),
    "seconds": 0.1,
    "augment": {"remix": 0.5},
    "validation_songs": 2,
    "validation_chunk_seconds": 0,
    "workers": 0,
    "prefetch": 2,
    "train_songs": 2,
    "song_seconds": 0.5,
    "learning_rate": 3e-3,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "loss_windows": (256, 64),
    "loss_hop": 64,
    "log_every": 2,
    "validate_every": 4,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
}


def tiny(model=None, **fields):
    return TrainingConfig.from_dict({**TRAINING, **fields, "model": {**MODEL, **(model or {})}})


def assert_same_weights(one, other):
    params, others = load_model(one)[1], load_model(other)[1]
    assert jax.tree.structure(params) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, params, others)


def with_batches(change):
    """A stand-in for `trainer.make_train_step`; each batch goes through `change(batch, its number in this run)`."""
    make = trainer.make_train_step

    def make_changed(config):
        step, numbers = make(config), itertools.count()
        return lambda state, batch: step(state, change(batch, next(numbers)))

    return make_changed


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
    [events] = (whole[0] / "events").iterdir()
    written = events.read_bytes()
    for scalar in (b"train/loss", b"train/learning_rate", b"validation/vocals_usdr"):
        assert scalar in written


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

    monkeypatch.setattr(trainer, "make_train_step", with_batches(crash))
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

make = trainer.make_train_step

def make_killing(config):
    step, numbers = make(config), itertools.count()

    def kill(state, batch):
        if next(numbers) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, batch)

    return kill

trainer.make_train_step = make_killing
trainer.train(TrainingConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def test_killed_and_restarted_it_ends_with_the_same_weights(whole, tmp_path):
    command = [sys.executable, "-c", KILLED_ON_THE_WAY, json.dumps(tiny().to_dict()), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]

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
    import shutil

    shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").unlink()
    assert trainer.train(tiny(), tmp_path / "copy") == whole[1]


def test_how_often_things_are_written_may_change(whole):
    assert trainer.train(tiny(log_every=4, validate_every=8, checkpoint_every=8), whole[0]) == whole[1]
    trainer._claim(whole[0], tiny())


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

    monkeypatch.setattr(trainer.plots, "save_curves", full)
    with pytest.raises(InputError, match=f"cannot write {whole[0]}: the disk is full"):
        trainer.train(tiny(), whole[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_is_read_only_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        trainer.train(tiny(), tmp_path)


@pytest.mark.parametrize("bad_step", [1, 6])
def test_divergence_is_named_and_never_saved(tmp_path, monkeypatch, bad_step):
    def diverge(batch, number):
        return {name: audio * np.float32(np.nan if number == bad_step - 1 else 1) for name, audio in batch.items()}

    monkeypatch.setattr(trainer, "make_train_step", with_batches(diverge))
    with pytest.raises(InputError, match=r"the loss is nan at step \d: training diverged, choose a lower"):
        trainer.train(tiny(), tmp_path)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["2", "4"][: (bad_step - 1) // 2]


def one_batch(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.batch_size, 2, config.crop_samples)
    vocals = 0.1 * rng.standard_normal(shape, dtype=np.float32)
    return {"mixture": vocals + 0.1 * rng.standard_normal(shape, dtype=np.float32), "targets": vocals[:, None]}


def test_step_is_pure_learns_and_leaves_the_constants():
    config = tiny()
    train_step = trainer.make_train_step(config)
    batch = one_batch(config)
    ends = []
    for _ in range(2):
        state = trainer.initial_state(config)
        before = jax.device_get(state.params)
        losses = []
        for _ in range(8):
            state, metrics = train_step(state, batch)
            losses.append(float(metrics["loss"]))
        ends.append(jax.device_get(state.params))
        assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert int(state.step) == 8
    for name in ("time_rotary", "freq_rotary"):
        np.testing.assert_array_equal(before[name]["freqs"], ends[0][name]["freqs"])
    assert not np.array_equal(before["sink_tokens"], ends[0]["sink_tokens"])


def test_loss_is_that_of_the_public_recipe():
    from wroformer_jax.losses import reconstruction_loss

    config = tiny()
    state = trainer.initial_state(config)
    batch = one_batch(config)
    model = RoFormer(config.model)

    @jax.jit
    def loss_of(params, mixture, vocals):
        estimate = model.apply({"params": params}, mixture)[:, 0]
        return reconstruction_loss(estimate, vocals, stft_n_fft=256, windows=(256, 64), hop=64)

    expected = loss_of(state.params, batch["mixture"], batch["targets"][:, 0])
    _, metrics = trainer.make_train_step(config)(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


LEAVES = {"layer": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}, "gamma": np.ones(2, "f4")}


def test_only_matrices_decay():
    optimizer = trainer.make_optimizer(tiny(weight_decay=0.5, warmup=0.0))
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, LEAVES), optimizer.init(LEAVES), LEAVES)
    np.testing.assert_allclose(updates["layer"]["kernel"], -3e-3 * 0.5, rtol=1e-5)
    assert not updates["layer"]["bias"].any()
    assert not updates["gamma"].any()


def test_every_matrix_of_the_model_is_called_kernel():
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainer.initial_state(tiny()).params):
        name = path[-1].key
        assert name in ("kernel", "bias", "gamma", "freqs", "sink_tokens")
        assert name != "kernel" or leaf.ndim >= 2


def test_gradients_are_clipped():
    optimizer = trainer.make_optimizer(tiny(clip_norm=0.5))
    for scale in (1.0, 100.0):
        gradients = jax.tree.map(lambda leaf, scale=scale: scale * leaf, LEAVES)
        _, after = optimizer.update(gradients, optimizer.init(LEAVES), LEAVES)
        assert float(optax.global_norm(after[1][0].mu)) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_learning_rate_rises_and_falls():
    schedule = trainer._schedule(tiny(steps=100, warmup=0.1))
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0
    assert np.argmax(rates) == 10
    assert rates[10] == pytest.approx(3e-3)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert float(trainer._schedule(tiny(steps=1, warmup=0.0))(0)) == pytest.approx(3e-3)


def test_validation_scores_each_stem(monkeypatch):
    config = tiny(model={"stems": ["vocals", "drums"]}).model
    rng = np.random.default_rng(0)
    songs = [
        evaluate.WholeSong(*np.split(0.1 * rng.standard_normal((3, 2, 7999), dtype=np.float32), [1])) for _ in range(2)
    ]
    songs = [evaluate.WholeSong(song.mixture[0], song.targets) for song in songs]
    songs[1].targets[1] = 0
    halved = lambda *args, **kwargs: 0.5 * next(targets)  # noqa: E731
    targets = (song.targets for song in songs)
    monkeypatch.setattr(evaluate, "separate_song", halved)
    scores = evaluate.validate(RoFormer(config), None, songs, chunk_seconds=None)
    assert scores.keys() == {"vocals_usdr", "drums_usdr", "usdr", "mixture_usdr", "improvement"}
    for name in ("vocals_usdr", "drums_usdr", "usdr"):
        assert scores[name] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert scores["improvement"] == pytest.approx(scores["usdr"] - scores["mixture_usdr"])


@pytest.mark.parametrize("chunk_seconds", [None, 0.2])
def test_validation_separates_songs_of_any_length(chunk_seconds):
    model, params = RoFormer(tiny().model), trainer.initial_state(tiny()).params
    mixture = 0.1 * np.random.default_rng(0).standard_normal((2, 7999), dtype=np.float32)
    assert evaluate.separate_song(model, params, mixture, chunk_seconds=chunk_seconds).shape == (1, 2, 7999)
