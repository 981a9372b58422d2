import importlib.util
import json
import math
from pathlib import Path

import pytest

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError


def quickstart(**changes):
    """The fields of configs/quickstart.py as plain values; `model` is merged into the model's own."""
    path = Path(__file__).parents[2] / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = module.get_config().to_dict()
    return {**fields, **changes, "model": {**fields["model"], **changes.get("model", {})}}


def test_quickstart_is_a_windowed_sink_model_for_stereo_at_44100():
    config = TrainingConfig.from_dict(quickstart())
    model = config.model
    assert (model.time_mixer, model.window, model.num_sinks) == ("windowed_sink", 10, 8)
    assert (model.sample_rate, model.channels, model.stems) == (44100, 2, ("vocals",))
    assert config.crop_samples % model.stft_hop_length == 0


def test_goes_through_json():
    config = TrainingConfig.from_dict(quickstart())
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_whole_numbers_serve_as_fractions():
    config = TrainingConfig.from_dict(quickstart(song_seconds=4, clip_norm=1))
    assert config == TrainingConfig.from_dict(quickstart(song_seconds=4.0, clip_norm=1.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stepz": 4}, "unknown config field 'stepz', did you mean 'steps'"),
        ({"model": {"dimm": 4}}, "unknown model field 'dimm', did you mean 'dim'"),
        ({"model": {"dim": 0}}, "dim is 0, expected a whole number of at least 1"),
        ({"steps": 0}, "steps is 0, expected a whole number of at least 1"),
        ({"steps": 1.5}, "steps is 1.5, expected a whole number"),
        ({"steps": True}, "steps is True, expected a whole number"),
        ({"batch_size": "8"}, "batch_size is '8', expected a whole number"),
        ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ({"seed": 2**32}, "seed is 4294967296, expected a whole number of at least 0 and of at most 4.29497e\\+09"),
        ({"seconds": 1e9}, "seconds is 1000000000.0, expected a number above 0 and of at most 3600"),
        ({"model": {"stems": ["guitar"]}}, "model.stems has 'guitar', but synthetic songs have vocals, drums, bass"),
        ({"stems": ["vocals", "guitar"]}, "stems has 'guitar', but synthetic songs have vocals, drums, bass"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan, expected a number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf, expected a number above 0"),
        ({"augment": {"remixx": 1.0}}, "unknown field of the augmentation 'remixx', did you mean 'remix'"),
        ({"augment": 1}, "augment is 1, expected the fields of the augmentation"),
        ({"data": None}, "data is None, expected the path of a set"),
        ({"stems": "vocals"}, "stems is 'vocals', expected a list of names"),
        ({"warmup": 1.5}, "warmup is 1.5, expected a number of at least 0 and of at most 1"),
        ({"warmup": -0.1}, "warmup is -0.1, expected a number of at least 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0, expected a number of at least 0"),
        ({"loss_windows": 2048}, "loss_windows is 2048, expected a list"),
        ({"loss_windows": []}, "loss_windows is empty"),
        ({"loss_windows": [2048, 0]}, "loss_windows is 0, expected a whole number of at least 1"),
        ({"seconds": 0.04}, "seconds is 0.04, .* needs 2049"),
        ({"song_seconds": 0.5}, "song_seconds is 0.5, shorter than a crop of 1.0 s"),
        ({"checkpoint_every": 15}, "checkpoint_every is 15, expected a multiple of log_every, 10"),
        ({"model": {"sample_rate": 8000}}, "model.sample_rate is 8000, expected at least 16000"),
        ({"model": {"remat": "blocks"}}, "remat is 'blocks', expected one of"),
        ({"mesh": {"data": 1, "fdsp": 1, "seq": 1}}, "unknown field mesh.fdsp, did you mean 'fsdp'"),
        ({"mesh": {"data": 1, "seq": 1}}, "mesh has no field 'fsdp', expected data, fsdp, seq"),
        ({"mesh": {"data": 0, "fsdp": 1, "seq": 1}}, "mesh.data is 0, expected a whole number of at least 1"),
        ({"mesh": 4}, "mesh is 4, expected the fields of the sizes of the mesh"),
        ({"loss_weights": {"l1": 1, "sftt": 1, "masks": 0}}, "unknown field loss_weights.sftt, did you mean 'stft'"),
        ({"loss_weights": {"l1": 1, "stft": 1}}, "loss_weights has no field 'masks'"),
        ({"loss_weights": {"l1": 0, "stft": 0, "masks": 0}}, "loss_weights are all 0"),
        ({"loss_weights": {"l1": -1, "stft": 1, "masks": 0}}, "loss_weights.l1 is -1, expected a number of at least 0"),
        ({"loss_weights": {"l1": 1, "stft": 1, "masks": 1}}, "loss_weights.masks is above 0, but there is no teacher"),
        ({"schedule": "linear"}, "schedule is 'linear', expected one of 'cosine', 'constant'"),
        ({"ema": 1.0}, "ema is 1.0, expected a number of at least 0 and below 1"),
        ({"accumulate": 0}, "accumulate is 0, expected a whole number of at least 1"),
        ({"learning_rate_scales": [["sink_tokens"]]}, "learning_rate_scales has .*expected pairs of a pattern"),
        ({"learning_rate_scales": [["sink_tokens", -1]]}, "learning_rate_scales of 'sink_tokens' is -1"),
        ({"freeze": "blocks"}, "freeze is 'blocks', expected a list of patterns"),
        ({"profile_steps": [3]}, r"profile_steps is \(3,\), expected the first and the last step"),
        ({"profile_steps": [5, 4]}, "the last of profile_steps is 4, expected a whole number of at least 5"),
    ],
)
def test_bad_fields_are_named(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        TrainingConfig.from_dict(quickstart(**changes))


def test_missing_fields_are_named():
    fields = quickstart()
    del fields["clip_norm"]
    with pytest.raises(InputError, match="no field 'clip_norm'"):
        TrainingConfig.from_dict(fields)
    with pytest.raises(InputError, match="model is 'small', expected the fields of a model"):
        TrainingConfig.from_dict({**quickstart(), "model": "small"})
