"""ModelConfig: what it derives, what it refuses, and that it survives JSON."""

import dataclasses
import json

import pytest

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError


def test_the_defaults_are_the_published_model():
    config = ModelConfig()
    assert (config.dim, config.depth, config.num_bands, config.window, config.num_sinks) == (384, 6, 60, 10, 8)
    assert config.num_bins == 1025
    assert config.num_stems == 1


@pytest.mark.parametrize(
    "config",
    [ModelConfig(), ModelConfig(band_scheme="band_split", stems=("drums", "bass"), time_mixer="full", num_sinks=0)],
)
def test_it_survives_json_and_is_hashable(config):
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_a_field_may_have_its_former_name():
    saved = {**ModelConfig().to_dict(), "remat": "block"}
    del saved["blocks_per_save"]
    assert ModelConfig.from_dict({**saved, "blocks_a_save": 3}).blocks_per_save == 3
    with pytest.raises(InputError, match="both 'blocks_per_save' and 'blocks_a_save'"):
        ModelConfig.from_dict({"blocks_per_save": 3, "blocks_a_save": 3})


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().dim = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"windw": 10}, "unknown model field 'windw', did you mean 'window'?"),
        ({"dim": 0}, "dim is 0, expected a whole number of at least 1"),
        ({"dim": "384"}, "dim is '384'"),
        ({"window": -1}, "window is -1"),
        ({"time_mixer": "mamba"}, "time_mixer is 'mamba', expected one of 'windowed_sink', 'full'"),
        ({"band_scheme": "bark"}, "band_scheme is 'bark'"),
        ({"channels": 6}, "channels is 6"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"zero_dc": "yes"}, "zero_dc is 'yes', expected true or false"),
        ({"dim_head": 7}, "dim_head is 7"),
        ({"stems": []}, "expected at least one name"),
        ({"stems": ["vocals", "vocals"]}, "names a stem twice"),
        ({"stems": "vocals"}, "stems must be a list"),
        ({"stft_win_length": 4096}, "longer than stft_n_fft"),
        ({"stft_hop_length": 4096}, "stft_hop_length is 4096, too long for stft_win_length = 2048"),
        ({"stft_hop_length": 2048}, "stft_hop_length is 2048, too long"),
        ({"freqs_per_bands": [1025]}, "belongs to band_scheme 'band_split'"),
        ({"band_scheme": "band_split", "freqs_per_bands": [5, 6]}, "adds up to 11 bins"),
        ({"band_scheme": "band_split", "freqs_per_bands": 7}, "expected a list"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(fields, message):
    with pytest.raises(InputError) as error:
        ModelConfig.from_dict(fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
