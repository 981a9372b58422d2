"""Settings of PyTorch checkpoints: from their weights, from their YAML files, and both against each other."""

import dataclasses
import json

import pytest
from support.torch_checkpoints import CONFIG, CONFIGS, FULL, saved, state_dict, write_yaml

from wroformer_jax.checkpoints.torch_files import load_torch
from wroformer_jax.checkpoints.torch_yaml import public_yaml
from wroformer_jax.errors import InputError


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_read_off_the_weights(tmp_path, name, caplog):
    config = dataclasses.replace(CONFIGS[name], zero_dc=True)
    inferred, _, _ = load_torch(saved(tmp_path, state_dict(config)))
    named = dataclasses.replace(inferred, stems=config.stems)
    if config.time_mixer == "full":  # full attention has no window
        named = dataclasses.replace(named, window=config.window)
    assert named == config
    assert "sample_rate 44100" in caplog.text


@pytest.mark.parametrize("name", CONFIGS)
def test_the_yaml_gives_the_rest(tmp_path, name):
    config = CONFIGS[name]
    path = write_yaml(tmp_path / "model.yaml", config)
    assert "!!python/tuple" in path.read_text()
    assert load_torch(saved(tmp_path, state_dict(config)), path)[0] == config


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_written_for_pytorch_are_read_back(tmp_path, name):
    config = dataclasses.replace(CONFIGS[name], skip_connection=True, stft_hop_length=300)
    yaml_path = tmp_path / "out.yaml"
    yaml_path.write_text(public_yaml(config))
    assert load_torch(saved(tmp_path, state_dict(config)), yaml_path)[0] == config


def test_our_own_settings_are_read(tmp_path):
    config = dataclasses.replace(CONFIG, window=6)
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "model": config.to_dict()}))
    assert load_torch(saved(tmp_path, state_dict(config)), tmp_path / "model.json")[0] == config
    (tmp_path / "model.json").write_text(json.dumps({"model": {**config.to_dict(), "windw": 3}}))
    with pytest.raises(InputError, match=r"model.json: unknown model field 'windw', did you mean 'window'\?"):
        load_torch(tmp_path / "model.ckpt", tmp_path / "model.json")


@pytest.mark.parametrize(("depth", "layers"), [(1, 2), (2, 2), (2, 3), (3, 3)])
def test_the_number_of_mask_layers_is_read_off_the_weights(tmp_path, depth, layers):
    config = dataclasses.replace(FULL, mask_layers=layers)
    path = write_yaml(tmp_path / "model.yaml", config, mask_estimator_depth=depth)
    assert load_torch(saved(tmp_path, state_dict(config)), path)[0].mask_layers == layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 12}, "says depth is 12, but the weights"),
        ({"dim": 16}, "says dim is 16, but the weights"),
        ({"heads": 4}, "says heads is 4"),
        ({"num_bands": 60}, "says num_bands is 60"),
        ({"num_stems": 4}, "says num_stems is 4, but the weights have 1"),
        ({"mask_estimator_depth": 7}, "says mask_layers is 7"),
        ({"n_wsa_sinks": 4}, "says num_sinks is 4"),
        ({"stereo": False}, "channels 1"),
        ({"sample_rate": 16000}, "sample_rate 16000"),
        ({"dim_freqs_in": 513}, "dim_freqs_in is 513, expected 1025"),
        ({"stft_normalized": True}, "stft_normalized: True changes what the model computes and is not supported"),
        ({"linear_transformer_depth": 1}, "linear_transformer_depth: 1 changes"),
        ({"num_residual_streams": 4}, "num_residual_streams: 4 changes"),
        ({"stft_hop_length": "long"}, "stft_hop_length is 'long', expected int"),
        ({"stft_n_fft": "2048"}, "stft_n_fft is '2048', expected int"),
        ({"mask_estimator_depth": "two"}, "mask_estimator_depth is 'two', expected int"),
        ({"freqs_per_bands": 7}, "freqs_per_bands is 7, expected list or tuple"),
        ({"stereo": "yes"}, "stereo is 'yes', expected bool"),
        ({"stft_hop_length": 0}, "stft_hop_length is 0, expected a whole number of at least 1"),
    ],
)
def test_a_yaml_that_does_not_fit_is_named(tmp_path, changes, message):
    path = write_yaml(tmp_path / "model.yaml", CONFIG, **changes)
    with pytest.raises(InputError) as error:
        load_torch(saved(tmp_path, state_dict(CONFIG)), path)
    assert message in str(error.value)
    assert "model.yaml" in str(error.value) or str(tmp_path / "model.ckpt") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_yaml_key_is_reported_and_the_rest_used(tmp_path, caplog):
    path = write_yaml(tmp_path / "model.yaml", CONFIG, stft_hop_lenght=441)
    assert load_torch(saved(tmp_path, state_dict(CONFIG)), path)[0] == CONFIG
    assert "unknown setting stft_hop_lenght is ignored, did you mean 'stft_hop_length'?" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [", "cannot be read as YAML"),
        ("dim: 384", "no 'model:' section"),
        ("model: {dim: 8}\ntraining: [1]", "a list of names under 'instruments:'"),
        ("model: {dim: 8}\ntraining: {instruments: 5}", "a list of names under 'instruments:'"),
        ("model: {dim: 2020-13-45}", "cannot be read as YAML"),
        ("model: !!python/object/apply:os.system ['touch pwned']", "cannot be read as YAML"),
    ],
)
def test_a_bad_yaml_is_refused_without_running_it(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        load_torch(saved(tmp_path, state_dict(CONFIG)), tmp_path / "model.yaml")
    assert not (tmp_path / "pwned").exists()


def test_zero_dc_is_always_set_for_windowed_sinks(tmp_path, caplog):
    path = write_yaml(tmp_path / "model.yaml", CONFIG, zero_dc=False)
    assert load_torch(saved(tmp_path, state_dict(CONFIG)), path)[0].zero_dc
    assert "zero_dc is taken as true" in caplog.text
