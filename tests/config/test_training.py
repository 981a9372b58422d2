"""TrainingConfig: its defaults and groups, what it refuses, and that settings of older style still load."""

import json
import math

import pytest
from support.tiny_training import fields_of

from wroformer_jax.config import default_config
from wroformer_jax.config.former_names import FORMER_NAMES, with_current_names, with_current_options
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError


def small(**changes):
    """The defaults, with crops of a second."""
    return TrainingConfig().with_changes(seconds=1.0).with_changes(**changes)


def test_the_defaults_are_a_run_of_the_published_model():
    config = TrainingConfig()
    model = config.model
    assert (model.time_mixer, model.window, model.num_sinks) == ("windowed_sink", 10, 8)
    assert (model.sample_rate, model.channels, model.stems) == (44100, 2, ("vocals",))
    assert config.crop_samples == 8 * 44100
    assert config == TrainingConfig.from_dict({})


def test_goes_through_json():
    config = small(optimizer={"freeze": ["band_split"], "learning_rate_scales": [["sink_tokens", 10.0]]})
    again = TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_whole_numbers_serve_as_fractions():
    config = small(synthetic={"song_seconds": 4}, optimizer={"clip_norm": 1})
    assert config == small(synthetic={"song_seconds": 4.0}, optimizer={"clip_norm": 1.0})
    assert type(config.synthetic.song_seconds) is float


def test_a_part_of_a_mesh_has_the_defaults_for_the_rest():
    assert small(mesh={"seq": 8}).mesh == {"data": -1, "fsdp": 1, "seq": 8}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stepz": 4}, "unknown config field 'stepz', did you mean 'steps'"),
        ({"learnin_rate": 4}, "unknown config field 'learnin_rate', did you mean 'optimizer.learning_rate'"),
        ({"loading": {"wokers": 4}}, "unknown config field 'loading.wokers', did you mean 'loading.workers'"),
        ({"model": {"dimm": 4}}, "unknown model field 'dimm', did you mean 'dim'"),
        ({"model": {"dim": 0}}, "dim is 0, expected a whole number of at least 1"),
        ({"model": "small"}, "model is 'small', expected its fields, such as model.band_scheme"),
        ({"steps": 0}, "steps is 0, expected a whole number of at least 1"),
        ({"steps": 1.5}, "steps is 1.5, expected a whole number"),
        ({"steps": True}, "steps is True, expected a whole number"),
        ({"batch_size": "8"}, "batch_size is '8', expected a whole number"),
        ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ({"seed": 2**32}, "seed is 4294967296, expected a whole number of at least 0 and of at most 4294967295"),
        ({"seconds": 1e9}, "seconds is 1000000000.0, expected a number above 0 and of at most 3600"),
        ({"model": {"stems": ["guitar"]}}, "model.stems has 'guitar', but synthetic songs have vocals, drums, bass"),
        ({"stems": ["vocals", "guitar"]}, "stems has 'guitar', but synthetic songs have vocals, drums, bass"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate is 0.0, expected a number above 0"),
        ({"optimizer": {"learning_rate": math.nan}}, "optimizer.learning_rate is nan, expected a number above 0"),
        ({"optimizer": {"learning_rate": math.inf}}, "optimizer.learning_rate is inf, expected a number above 0"),
        ({"augment": {"remixx": 1.0}}, "unknown field of the augmentation 'remixx', did you mean 'remix'"),
        ({"augment": 1}, "augment is 1, expected its fields, such as augment.remix"),
        ({"data": None}, "data is None, expected the path of a set"),
        ({"stems": "vocals"}, "stems is 'vocals', expected a list of names"),
        ({"optimizer": {"warmup": 1.5}}, "optimizer.warmup is 1.5, expected a number of at least 0 and of at most 1"),
        ({"optimizer": {"warmup": -0.1}}, "optimizer.warmup is -0.1, expected a number of at least 0"),
        ({"optimizer": {"weight_decay": -1.0}}, "optimizer.weight_decay is -1.0, expected a number of at least 0"),
        ({"loss": {"windows": 2048}}, "loss.windows is 2048, expected a list of lengths in samples"),
        ({"loss": {"windows": []}}, "loss.windows is empty"),
        ({"loss": {"windows": [2048, 0]}}, "loss.windows is 0, expected a whole number of at least 1"),
        ({"seconds": 0.04}, "seconds is 0.04, .* needs 2049"),
        ({"synthetic": {"song_seconds": 0.5}}, "synthetic.song_seconds is 0.5, shorter than a crop of 1.0 s"),
        ({"checkpoints": {"every": 75}}, "checkpoints.every is 75, expected a multiple of logging.every, 50"),
        ({"model": {"sample_rate": 8000}}, "model.sample_rate is 8000, expected at least 16000"),
        ({"model": {"remat": "blocks"}}, "remat is 'blocks', expected one of"),
        ({"mesh": {"data": 1, "fdsp": 1, "seq": 1}}, "unknown config field 'mesh.fdsp', did you mean 'mesh.fsdp'"),
        ({"mesh": {"data": 0, "fsdp": 1, "seq": 1}}, "mesh.data is 0, expected a whole number of at least 1"),
        ({"mesh": 4}, "mesh is 4, expected the sizes of its axes data, fsdp, seq"),
        (
            {"loss": {"weights": {"sftt": 1}}},
            "unknown config field 'loss.weights.sftt', did you mean 'loss.weights.stft'",
        ),
        ({"loss": {"weights": {"l1": 0, "stft": 0, "masks": 0}}}, "loss.weights are all 0"),
        ({"loss": {"weights": {"l1": -1}}}, "loss.weights.l1 is -1.0, expected a number of at least 0"),
        ({"loss": {"weights": {"masks": 1}}}, "loss.weights.masks is above 0, but there is no teacher"),
        ({"optimizer": {"schedule": "linear"}}, "optimizer.schedule is 'linear', expected one of 'cosine', 'constant'"),
        ({"optimizer": {"ema": 1.0}}, "optimizer.ema is 1.0, expected a number of at least 0 and below 1"),
        ({"optimizer": {"accumulate": 0}}, "optimizer.accumulate is 0, expected a whole number of at least 1"),
        ({"optimizer": {"learning_rate_scales": [["sink_tokens"]]}}, "scales has .*expected pairs of a pattern"),
        ({"optimizer": {"learning_rate_scales": [["sink_tokens", -1]]}}, "scales of 'sink_tokens' is -1"),
        ({"optimizer": {"freeze": "blocks"}}, "optimizer.freeze is 'blocks', expected a list of patterns"),
        ({"profile_steps": [3]}, r"profile_steps is \(3,\), expected the first and the last step"),
        ({"profile_steps": [5, 4]}, "the last of profile_steps is 4, expected a whole number of at least 5"),
    ],
)
def test_bad_fields_are_named(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        small(**changes)


def test_what_is_no_mapping_is_refused():
    with pytest.raises(InputError, match=r"the settings of a run are \[1\], expected fields and their values"):
        TrainingConfig.from_dict([1])


# --- former names: all fields were at the top


def flattened(config):
    """The settings as they were written before there were groups."""
    fields = config.to_dict()
    flat = {former: fields[group][name] for former, (group, name) in FORMER_NAMES.items()}
    groups = {group for group, _ in FORMER_NAMES.values()}
    return flat | {name: value for name, value in fields.items() if name not in groups}


def test_settings_without_groups_still_load():
    config = TrainingConfig.from_dict(fields_of("finetune_wsa"))
    assert TrainingConfig.from_dict(flattened(config)) == config


def test_every_field_of_a_group_has_a_former_name():
    """As long as none is added: a new one needs none, and belongs into the exceptions here."""
    fields = TrainingConfig().to_dict()
    groups = {group for group, _ in FORMER_NAMES.values()}
    assert {(group, name) for group in groups for name in fields[group]} == set(FORMER_NAMES.values())


def test_options_with_former_names_get_those_of_today():
    options = ["train", "--config=ema.py", "--config.ema=0.9", "-config.loss_weights.l1", "2", "--config.model.dim=64"]
    current = ["--config.optimizer.ema=0.9", "-config.loss.weights.l1", "2", "--config.model.dim=64"]
    assert with_current_options(options) == [*options[:2], *current]


def test_a_former_name_counts_where_a_field_is_given_by_both():
    fields = with_current_names({"optimizer": {"ema": 0.9, "b1": 0.8}, "ema": 0.5})
    assert fields == {"optimizer": {"ema": 0.5, "b1": 0.8}}


def test_a_bad_value_of_a_former_name_is_refused_by_the_name_of_today():
    with pytest.raises(InputError, match=r"optimizer.learning_rate is -1.0, expected a number above 0"):
        small(learning_rate=-1.0)


# --- recipes start from the defaults


def test_a_recipe_starts_from_all_the_defaults():
    assert TrainingConfig.from_dict(default_config().to_dict()) == TrainingConfig()


def test_a_field_that_does_not_exist_cannot_be_set_in_a_recipe():
    config = default_config()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.learning_rate = 1e-3
    with pytest.raises(TypeError):
        config.optimizer.learning_rate = "high"


def test_bands_can_be_set_in_a_recipe():
    config = default_config()
    config.model.band_scheme = "band_split"
    config.model.freqs_per_bands = (512, 513)
    assert TrainingConfig.from_dict(config.to_dict()).model.num_bands == 2
