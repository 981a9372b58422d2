import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wroformer_jax import evaluate, trainer
from wroformer_jax.checkpoint import load_model
from wroformer_jax.data.batches import SongPool
from wroformer_jax.errors import InputError
from wroformer_jax.model import RoFormer, init_params
from wroformer_jax.training_config import TrainingConfig

ROOT = Path(__file__).parents[1]

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
    "crop_seconds": 0.1,
    "train_songs": 2,
    "validation_songs": 2,
    "song_seconds": 0.5,
    "remix": 0.5,
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
        "spectrogram.png",
    }  # fmt: skip
    assert TrainingConfig.from_dict(json.loads((workdir / "config.json").read_text())) == tiny()
    assert list((workdir / "events").iterdir())
    wavs = {
        name: soundfile.read(workdir / "example" / f"{name}.wav")
        for name in ("mixture", "vocals", "instrumental", "vocals_reference")
    }
    assert all(rate == 16000 and audio.shape == (8000, 2) for audio, rate in wavs.values())
    sum_of_stems = wavs["vocals"][0] + wavs["instrumental"][0]
    np.testing.assert_allclose(sum_of_stems, wavs["mixture"][0], atol=1e-4)  # two roundings to 16 bits
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
    song = np.zeros((1, 2, 1280), np.float32)
    assert model.apply({"params": params}, song).shape == (1, 1, 2, 1280)


def test_last_lines_say_what_to_do_next(tmp_path, capsys):
    trainer.train(tiny(), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"  wroformer separate song.wav --checkpoint {tmp_path / 'run'} --output separated"
    assert lines[-1] == f"  tensorboard --logdir {tmp_path / 'run'}"
    assert any(line.startswith("step 8/8: loss ") for line in lines)


def test_same_seed_same_numbers_and_another_seed_others(whole, tmp_path):
    workdir, _ = whole
    trainer.train(tiny(), tmp_path / "again")
    assert_same_weights(workdir, tmp_path / "again")
    metrics = (workdir / "metrics.jsonl").read_bytes()
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == metrics
    trainer.train(tiny(seed=4), tmp_path / "other")
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() != metrics


@pytest.mark.parametrize("steps_before_the_crash", [1, 5, 7])
def test_resumes_exactly(whole, tmp_path, monkeypatch, steps_before_the_crash):
    batches = trainer.training_batches

    def crash(*args, **kwargs):
        source = batches(*args, **kwargs)
        for _ in range(steps_before_the_crash):
            yield next(source)
        raise MemoryError

    monkeypatch.setattr(trainer, "training_batches", crash)
    with pytest.raises(MemoryError):
        trainer.train(tiny(), tmp_path)
    monkeypatch.undo()
    trainer.train(tiny(), tmp_path)
    assert_same_weights(whole[0], tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_killed_and_restarted_it_ends_with_the_same_weights(tmp_path):
    config = tiny(steps=60)
    settings = [f"--config.{name}={value}" for name, value in config.to_dict().items() if name != "model"]
    settings += [f"--config.model.{name}={value}" for name, value in MODEL.items()]
    command = [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'killed'}"]
    command += [setting.replace("[", "").replace("]", "").replace(", ", ",") for setting in settings]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (tmp_path / "killed" / "checkpoints" / "4").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    assert not (tmp_path / "killed" / "checkpoints" / "60").exists()

    trainer.train(config, tmp_path / "killed")
    trainer.train(config, tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    metrics = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == metrics


def test_a_finished_run_writes_its_report_again(whole, capsys):
    workdir, scores = whole
    metrics = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "curve.png").unlink()
    assert trainer.train(tiny(), workdir) == scores
    assert "going on from step 8" in capsys.readouterr().out
    assert (workdir / "curve.png").exists()
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


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
        with pytest.raises(InputError, match=f"cannot write in the workdir {workdir}: "):
            trainer.train(tiny(), workdir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_is_read_only_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write in the workdir"):
        trainer.train(tiny(), tmp_path)


def test_divergence_is_named_and_never_saved(tmp_path):
    with pytest.raises(InputError, match=r"is (nan|inf) at step \d+: training diverged"):
        trainer.train(tiny(learning_rate=1e30, warmup=0.0), tmp_path)
    for step in (tmp_path / "checkpoints").iterdir():
        params = load_model(tmp_path)[1]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)), step


def one_batch(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.batch_size, 2, config.crop_samples)
    vocals = 0.1 * rng.standard_normal(shape, dtype=np.float32)
    return {"mixture": vocals + 0.1 * rng.standard_normal(shape, dtype=np.float32), "vocals": vocals}


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
    estimate = RoFormer(config.model).apply({"params": state.params}, batch["mixture"])[:, 0]
    expected = reconstruction_loss(estimate, jnp.asarray(batch["vocals"]), stft_n_fft=256, windows=(256, 64), hop=64)
    _, metrics = trainer.make_train_step(config)(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_only_matrices_decay():
    config = tiny(weight_decay=0.5, warmup=0.0)
    params = init_params(RoFormer(config.model), 0)
    optimizer = trainer.make_optimizer(config)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert bool(jnp.any(update != 0)) == (path[-1].key == "kernel"), path


def test_gradients_are_clipped():
    config = tiny(clip_norm=0.5)
    params = init_params(RoFormer(config.model), 0)
    optimizer = trainer.make_optimizer(config)
    state = optimizer.init(params)
    for scale in (1.0, 100.0):
        gradients = jax.tree.map(lambda p, scale=scale: jnp.full_like(p, scale), params)
        _, after = optimizer.update(gradients, state, params)
        first_moment = after[1][0].mu
        norm = np.sqrt(sum(float(jnp.sum(m**2)) for m in jax.tree.leaves(first_moment)))
        assert norm == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_learning_rate_rises_and_falls():
    schedule = trainer._schedule(tiny(steps=100, warmup=0.1))
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0
    assert np.argmax(rates) == 10
    assert rates[10] == pytest.approx(3e-3)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert float(trainer._schedule(tiny(steps=1, warmup=0.0))(0)) == pytest.approx(3e-3)


def test_validation_pads_and_cuts_to_the_song(monkeypatch):
    model = RoFormer(tiny().model)
    params = init_params(model, 0)
    rng = np.random.default_rng(0)
    songs = SongPool(*(0.1 * rng.standard_normal((2, 1, 2, 1000), dtype=np.float32)))
    assert evaluate.separate_song(model, params, songs.vocals[0]).shape == (2, 1000)
    monkeypatch.setattr(evaluate, "separate_song", lambda _model, _params, mixture: 0 * mixture)
    scores = evaluate.validate(model, params, songs)
    assert scores["vocals_usdr"] == pytest.approx(0)
    assert scores["improvement"] == pytest.approx(-scores["mixture_usdr"])
