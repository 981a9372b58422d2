"""What a run starts from: weights that fit as they are or get sinks, and a teacher; what does not fit is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from support.tiny_model import assert_same, make_params
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints.model_dir import save_model
from wroformer_jax.errors import InputError
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.training.initialisation import frozen_teacher, starting_params
from wroformer_jax.training.trainer import train

WINDOWED = tiny_run().model
FULL = dataclasses.replace(WINDOWED, time_mixer="full", num_sinks=0, zero_dc=False)


def saved(folder, config):
    params = make_params(config)
    save_model(folder, config, params)
    return params


def test_nothing_is_read_without_init():
    assert starting_params(tiny_run()) is None
    assert frozen_teacher(tiny_run(), make_mesh(tiny_run().mesh)) is None


def test_a_full_attention_model_gets_sinks(tmp_path):
    there = saved(tmp_path / "full", FULL)
    config = tiny_run(init=str(tmp_path / "full"))
    params = starting_params(config)
    sinks = params.pop("sink_tokens")
    assert sinks.shape == (2, FULL.num_bands, FULL.dim)
    assert 0.005 < np.std(sinks) < 0.05
    assert_same(jax.device_get(there), params)
    np.testing.assert_array_equal(starting_params(config)["sink_tokens"], sinks)
    assert not np.array_equal(starting_params(tiny_run(init=config.init, seed=4))["sink_tokens"], sinks)


def test_windows_without_sinks_take_the_weights_as_they_are(tmp_path):
    there = saved(tmp_path / "full", FULL)
    config = tiny_run(init=str(tmp_path / "full"), model={"num_sinks": 0, "window": 8})
    assert_same(jax.device_get(there), starting_params(config))


@pytest.mark.parametrize("config", [WINDOWED, FULL], ids=["windowed", "full"])
def test_a_model_of_the_same_kind_is_taken_as_it_is(tmp_path, config):
    there = saved(tmp_path / "model", config)
    model = {"time_mixer": config.time_mixer, "num_sinks": config.num_sinks, "dtype": "bfloat16", "remat": "block"}
    assert_same(jax.device_get(there), starting_params(tiny_run(init=str(tmp_path / "model"), model=model)))


def test_full_attention_has_no_window(tmp_path):
    there = saved(tmp_path / "full", dataclasses.replace(FULL, window=10))
    config = tiny_run(init=str(tmp_path / "full"), model={"time_mixer": "full", "num_sinks": 0})
    assert_same(jax.device_get(there), starting_params(config))


@pytest.mark.parametrize("base", [WINDOWED, FULL], ids=["windowed", "full"])
@pytest.mark.parametrize(
    "other",
    [
        {"dim": 16},
        {"depth": 2},
        {"num_bands": 8},
        {"heads": 2},
        {"dim_mask": 16},
        {"stems": ("drums",)},
        {"channels": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_model_of_other_sizes_is_refused(tmp_path, base, other):
    saved(tmp_path / "other", dataclasses.replace(base, **other))
    [name] = other
    with pytest.raises(InputError, match=rf"other is a model with {name} = .*but the config has model\.{name} = "):
        starting_params(tiny_run(init=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("there", "wanted", "name"),
    [
        (WINDOWED, {"window": 6}, "window"),
        (WINDOWED, {"num_sinks": 4}, "num_sinks"),
        (WINDOWED, {"time_mixer": "full", "num_sinks": 0}, "time_mixer"),
        (dataclasses.replace(FULL, num_sinks=3), {}, "time_mixer"),  # sinks, but no windows
    ],
)
def test_other_windows_and_sinks_are_refused(tmp_path, there, wanted, name):
    saved(tmp_path / "other", there)
    with pytest.raises(InputError, match=rf"model with {name} = .*model\.{name} = .*make them equal"):
        starting_params(tiny_run(init=str(tmp_path / "other"), model=wanted))


def test_it_is_refused_before_anything_is_compiled(tmp_path):
    saved(tmp_path / "other", dataclasses.replace(FULL, dim=16))
    with pytest.raises(InputError, match=r"model\.dim = 8"):
        train(
            tiny_run(init=str(tmp_path / "other")), tmp_path / "run", make_step=lambda *_: pytest.fail("it is compiled")
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["init", "teacher"])
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, field):
    config = tiny_run(**{field: str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="nowhere"):
        starting_params(config) if field == "init" else frozen_teacher(config, make_mesh(config.mesh))


def test_a_teacher_computes_as_the_run_does(tmp_path):
    there = saved(tmp_path / "full", dataclasses.replace(FULL, remat="block"))
    config = tiny_run(teacher=str(tmp_path / "full"), model={"dtype": "bfloat16"})
    teacher = frozen_teacher(config, make_mesh(config.mesh))
    assert teacher.model.config == dataclasses.replace(FULL, dtype="bfloat16", remat="none")
    assert_same(there, teacher.params)


def test_a_teacher_may_have_been_trained_with_any_memory_settings(tmp_path):
    trained = dataclasses.replace(FULL, depth=2, remat="block", blocks_per_save=2, stream_dtype="bfloat16")
    saved(tmp_path / "full", trained)
    config = tiny_run(teacher=str(tmp_path / "full"), model={"places_at_once": 60, "frames_at_once": 30})
    expected = dataclasses.replace(FULL, depth=2, remat="none", places_at_once=60, frames_at_once=30)
    assert frozen_teacher(config, make_mesh(config.mesh)).model.config == expected


def test_a_teacher_of_other_masks_is_refused(tmp_path):
    saved(tmp_path / "other", dataclasses.replace(FULL, stft_hop_length=64))
    config = tiny_run(teacher=str(tmp_path / "other"))
    with pytest.raises(InputError, match="the teacher has stft_hop_length = 64 and the model 128"):
        frozen_teacher(config, make_mesh(config.mesh))


def test_a_teacher_that_hears_less_than_an_stft_window_is_refused(tmp_path):
    saved(tmp_path / "full", FULL)
    config = tiny_run(teacher=str(tmp_path / "full"), teacher_seconds=256 / 16000)
    mesh = make_mesh(config.mesh)
    assert frozen_teacher(config, mesh)
    with pytest.raises(InputError, match=r"teacher_seconds is 0\.008, which is 128 samples .* 256 samples, at least"):
        frozen_teacher(dataclasses.replace(config, teacher_seconds=0.008), mesh)
