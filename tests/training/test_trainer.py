"""Training: what a run leaves, what may change when it continues, and what it refuses."""

import errno
import json
import os
import shutil

import jax
import numpy as np
import pytest
from support.event_files import events_in, sound_of, steps_by_tag
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints.model_dir import load_model, save_model
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.files import locked
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.training.trainer import train
from wroformer_jax.workdir.ownership import claim


def test_leaves_what_it_promises(whole):
    import soundfile

    workdir, scores = whole
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "checkpoints", "config.json", "curve.png", "events", "example", "metrics.jsonl", "model.json",
        "songs", "spectrogram.png",
    }  # fmt: skip
    assert TrainingConfig.from_dict(json.loads((workdir / "config.json").read_text())) == tiny_run()
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
    assert model.config == tiny_run().model
    jax.tree.map(np.testing.assert_array_equal, params, load_model(whole[0])[1])


def test_a_finished_run_writes_its_report_again(whole, capsys):
    workdir, scores = whole
    metrics = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "curve.png").unlink()
    assert train(tiny_run(), workdir) == scores
    first_line, *lines = capsys.readouterr().out.splitlines()
    assert first_line.startswith("going on from step 8")
    assert lines[-2:] == [
        f"  wroformer separate song.wav --checkpoint {workdir} --output separated",
        f"  tensorboard --logdir {workdir}  (needs: pip install tensorboard)",
    ]
    assert (workdir / "curve.png").exists()
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_songs_that_are_all_to_train_on(tmp_path, capsys):
    config = tiny_run(validation={"songs": 0})
    assert train(config, tmp_path) == {}
    printed = capsys.readouterr().out
    assert "there are no songs to validate on" in printed
    assert "\ndone\n" in printed
    assert (tmp_path / "curve.png").exists()
    assert not (tmp_path / "example").exists()


def test_a_lost_log_is_no_obstacle(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").unlink()
    assert train(tiny_run(), tmp_path / "copy") == whole[1]


def test_how_often_things_are_written_may_change(whole):
    assert (
        train(tiny_run(logging={"every": 4}, validation={"every": 8}, checkpoints={"every": 8}), whole[0]) == whole[1]
    )
    claim(whole[0], tiny_run())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": {"dim": 16}}, r"model.dim = 8, not 16.*choose another workdir"),
        ({"model": {"dtype": "bfloat16"}}, r"model.dtype = 'float32', not 'bfloat16'"),
        ({"steps": 9}, r"steps = 8, not 9"),
        ({"optimizer": {"learning_rate": 1e-3}}, r"optimizer.learning_rate = 0.003, not 0.001"),
    ],
)
def test_other_settings_are_refused(whole, changed, sentence):
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=sentence):
        train(tiny_run(**changed), whole[0])
    assert {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("role", "weights", "sentence"),
    [("init", {}, r"init \S+ is a model with stems = "), ("teacher", {"masks": 1}, "the teacher has stems = ")],
)
def test_a_checkpoint_of_another_kind_leaves_no_workdir(tmp_path, role, weights, sentence):
    model = RoFormer(tiny_run(model={"stems": ["drums"]}).model)
    save_model(tmp_path / "other", model.config, init_params(model, 0))
    fields = {role: str(tmp_path / "other"), "loss": {"weights": weights}}
    with pytest.raises(InputError, match=sentence):
        train(tiny_run(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mesh": {"data": 2, "fsdp": 1, "seq": 1}}, "mesh is data=2, .*takes 2 devices, but there are 1"),
        ({"model": {"attention_impl": "cudnn"}}, "attention_impl is 'cudnn', which needs a GPU"),
        ({"batch_size": 3, "optimizer": {"accumulate": 2}}, "batch_size is 3, which does not divide over the mesh"),
        ({"model": {"stems": ["guitar"]}, "data": True}, "no song .*guitar|'guitar'"),
        ({"optimizer": {"freeze": ["blockz"]}}, "optimizer.freeze has 'blockz', which matches no parameter"),
        (
            {"optimizer": {"learning_rate_scales": [["sinks", 10]]}},
            "optimizer.learning_rate_scales has 'sinks', which matches no parameter",
        ),
    ],
)
def test_it_is_refused_before_anything_is_compiled_or_written(whole, tmp_path, changed, sentence):
    if "data" in changed:
        changed = {**changed, "data": str(whole[0] / "songs")}
    with pytest.raises(InputError, match=sentence):
        train(tiny_run(**changed), tmp_path / "run", make_step=lambda *_: pytest.fail("it compiles"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"steps": 8}', '{"nonsense": 1}'])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json is not the config of a training run"):
        train(tiny_run(), tmp_path)


def test_a_model_directory_is_not_a_workdir(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a model but no config\.json"):
        train(tiny_run(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"cannot write {workdir}: "):
            train(tiny_run(), workdir)


def test_a_workdir_that_another_run_uses_is_left_alone(whole):
    config, workdir = tiny_run(), whole[0]
    before = (workdir / "metrics.jsonl").stat().st_ino
    with locked(workdir), pytest.raises(InputError, match="in use by another run"):
        train(config, workdir)
    assert (workdir / "metrics.jsonl").stat().st_ino == before
    with locked(workdir):
        pass  # let go after an error too


def test_a_disk_that_fills_up_is_named(whole, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(InputError, match=f"cannot write {whole[0]}: the disk is full"):
        train(tiny_run(), whole[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_is_read_only_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        train(tiny_run(), tmp_path)
