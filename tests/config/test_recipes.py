"""The files in configs/: each is a run that could start, and the published ones are of the published model."""

import dataclasses

import pytest
from support.tiny_training import CONFIGS, fields_of

from wroformer_jax.config.known_checkpoints import KNOWN_CHECKPOINTS
from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.recipe import default_config
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.params import num_parameters
from wroformer_jax.training.distillation import check_teacher
from wroformer_jax.training.initialisation import check_init
from wroformer_jax.training.optimizer import make_optimizer

NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def config_of(name):
    return TrainingConfig.from_dict(fields_of(name))


def test_there_are_the_three():
    assert {"finetune_wsa", "quickstart", "train_full"} <= set(NAMES)


def test_quickstart_is_a_windowed_sink_model_for_stereo_at_44100():
    model = config_of("quickstart").model
    assert (model.time_mixer, model.window, model.num_sinks) == ("windowed_sink", 10, 8)
    assert (model.sample_rate, model.channels, model.stems) == (44100, 2, ("vocals",))


@pytest.mark.parametrize("name", NAMES)
def test_is_a_run_that_could_start(name):
    config = config_of(name)
    assert config.crop_samples == round(config.seconds * config.model.sample_rate) // config.model.stft_hop_length * (
        config.model.stft_hop_length
    )
    assert config.batch_size % config.optimizer.accumulate == 0


@pytest.mark.parametrize("name", NAMES)
def test_patterns_of_parameters_match_some(name):
    from wroformer_jax.model.params import abstract_params
    from wroformer_jax.model.roformer import RoFormer

    config = config_of(name)
    make_optimizer(config, abstract_params(RoFormer(config.model)))


def test_fine_tuning_is_the_papers_recipe():
    config = config_of("finetune_wsa")
    published = {**KNOWN_CHECKPOINTS["smule-wsa"].config.to_dict(), "dtype": "bfloat16"}
    assert config.model == ModelConfig.from_dict(published)
    assert (config.model.window, config.model.num_sinks, config.seconds) == (10, 8, 8.0)
    assert num_parameters(config.model) > 220e6
    assert config.init == config.teacher == "kim-melband"
    assert min(dataclasses.astuple(config.loss.weights)) > 0
    assert config.teacher_samples == config.crop_samples


def test_fine_tuning_fits_the_checkpoint_that_it_names():
    config = config_of("finetune_wsa")
    there = KNOWN_CHECKPOINTS["kim-melband"].config
    check_init(there, config)
    check_teacher(there, config.model)


def test_what_is_trained_from_scratch_can_teach_what_is_fine_tuned():
    full, student = config_of("train_full"), config_of("finetune_wsa")
    assert full.model.time_mixer == "full"
    assert full.init == full.teacher == ""
    check_init(full.model, student)
    check_teacher(full.model, student.model)


def test_a_run_of_the_published_size_without_its_songs_is_refused(tmp_path, monkeypatch):
    from wroformer_jax.errors import InputError
    from wroformer_jax.training.trainer import train

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="sets/musdb18hq"):
        train(config_of("finetune_wsa"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fields_that_are_not_set_can_be_set():
    """As --config.model.places_at_once=300 does: a ConfigDict refuses a value for a bare None."""
    config = default_config()
    for name, value in {"freqs_per_bands": (1, 2), "places_at_once": 300, "frames_at_once": 20}.items():
        assert config.model[name] is None
        config.model[name] = value
    unset = [name for name, value in default_config().model.items() if value is None]
    assert sorted(unset) == ["frames_at_once", "freqs_per_bands", "places_at_once"]
