"""PyTorch files to parameters and back: every container, bit for bit, and every file that cannot be used."""

import dataclasses
import io
import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.helpers import tiny_config
from support.reference import make_reference

from wroformer_jax.checkpoints.torch_files import load_torch, save_torch
from wroformer_jax.checkpoints.torch_weights import (
    TorchLayout,
    from_state_dict,
    slots,
    to_state_dict,
)
from wroformer_jax.checkpoints.torch_yaml import public_yaml
from wroformer_jax.errors import InputError
from wroformer_jax.model.params import abstract_params, add_windowed_sinks, num_parameters
from wroformer_jax.model.roformer import RoFormer

CONFIG = tiny_config(num_bands=12, depth=1, dim=8, heads=2, dim_head=4, dim_feed_forward=32, dim_mask=32)
FULL = dataclasses.replace(CONFIG, time_mixer="full", num_sinks=0, zero_dc=False)
TWO_STEMS = dataclasses.replace(FULL, stems=("drums", "bass"), channels=1, time_transformer_depth=2)
BAND_SPLIT = dataclasses.replace(FULL, band_scheme="band_split", freqs_per_bands=(1,) * 5 + (20, 1000), mask_layers=2)
CONFIGS = {"windowed sinks": CONFIG, "full": FULL, "two stems, mono": TWO_STEMS, "band split": BAND_SPLIT}


def state_dict(config, dtype=torch.float32):
    return {key: value.to(dtype) for key, value in make_reference(config).state_dict().items()}


def write_yaml(path, config, **changes):
    """The YAML dialect of the public checkpoints."""
    model = {
        "dim": config.dim,
        "depth": config.depth,
        "stereo": config.channels == 2,
        "num_stems": config.num_stems,
        "time_transformer_depth": config.time_transformer_depth,
        "freq_transformer_depth": config.freq_transformer_depth,
        "dim_head": config.dim_head,
        "heads": config.heads,
        "attn_dropout": 0.0,
        "flash_attn": True,
        "dim_freqs_in": config.num_bins,
        "stft_n_fft": config.stft_n_fft,
        "stft_hop_length": config.stft_hop_length,
        "stft_win_length": config.stft_win_length,
        "stft_normalized": False,
        "mask_estimator_depth": config.mask_layers - 1,
        "multi_stft_resolutions_window_sizes": (4096, 2048, 1024, 512, 256),
        "zero_dc": config.zero_dc,
    }
    if config.band_scheme == "mel":
        model |= {"num_bands": config.num_bands, "sample_rate": config.sample_rate}
    else:
        model |= {"freqs_per_bands": config.freqs_per_bands}
    if config.time_mixer == "windowed_sink":
        model |= {"wsa_window_len": config.window, "n_wsa_sinks": config.num_sinks}
    model = {key: value for key, value in {**model, **changes}.items() if value is not None}
    target = config.stems[0] if config.num_stems == 1 else None
    training = {"instruments": [*config.stems, "other"][: max(2, config.num_stems)], "target_instrument": target}
    path.write_text(yaml.dump({"audio": {"chunk_size": 352800}, "model": model, "training": training}))
    return path


def same_bits(a, b):
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        assert a[key].shape == b[key].shape, key
        assert torch.equal(a[key].contiguous().view(torch.uint8), b[key].contiguous().view(torch.uint8)), key


@pytest.mark.parametrize("name", CONFIGS)
def test_the_slots_are_the_state_dict_and_fill_the_parameters(name):
    config = CONFIGS[name]
    table = list(slots(config))
    state = make_reference(config).state_dict()
    assert [(slot.key, slot.shape) for slot in table] == [(key, tuple(value.shape)) for key, value in state.items()]
    # Every weight of the tree is reached once, padding apart: mark through the slots what they cover.
    covered = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.int32), abstract_params(RoFormer(config)))
    for slot in table:
        leaf = covered
        for part in slot.path:
            leaf = leaf[part]
        slot.view(leaf)[...] += 1
    trained = [value for value in make_reference(config).parameters() if value.requires_grad]
    assert num_parameters(config) == sum(value.numel() for value in trained)
    sizes = sum(int(np.prod(slot.shape)) for slot in table)
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(covered)) == sizes
    shared = {("time_rotary", "freqs"), ("freq_rotary", "freqs")}
    for path, leaf in jax.tree.leaves_with_path(covered):
        if tuple(part.key for part in path) not in shared:
            assert leaf.max() == 1, path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_there_and_back_is_bit_identical(tmp_path, suffix, dtype):
    original = state_dict(CONFIG, dtype)
    source, back = tmp_path / f"model{suffix}", tmp_path / f"back{suffix}"
    save_file(original, source) if suffix == ".safetensors" else torch.save(original, source)
    config, params, layout = load_torch(source, write_yaml(tmp_path / "model.yaml", CONFIG))
    assert config == CONFIG
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    save_torch(back, config, params, TorchLayout.from_dict(layout.to_dict()))
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        same_bits(load_file(back), load_file(source))
        assert back.read_bytes() == source.read_bytes()
    else:
        same_bits(torch.load(back, weights_only=True), original)


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_weights_load_strictly_into_pytorch(tmp_path, name):
    config = CONFIGS[name]
    reference = make_reference(config)
    _, params, _ = load_torch(saved(tmp_path, reference.state_dict()), config)
    save_torch(tmp_path / "out.pt", config, params)
    other = make_reference(config, seed=1)
    other.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    same_bits(other.state_dict(), reference.state_dict())


def saved(folder, content, name="model.ckpt"):
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("suffix", "wrapper", "prefix"),
    [
        (".ckpt", None, ""),
        (".pt", None, "module."),
        (".pth", None, "model."),
        (".th", "state", ""),
        (".ckpt", "state_dict", "model."),
        (".ckpt", "model_state_dict", "module."),
        (".ckpt", "model", "model.module."),
    ],
)
def test_every_usual_container_is_read(tmp_path, suffix, wrapper, prefix):
    original = state_dict(CONFIG)
    content = {prefix + key: value for key, value in original.items()}
    if wrapper:
        content = {wrapper: content, "epoch": torch.tensor(3), "optimizer": {"lr": 1e-4}}
    path = saved(tmp_path, content, f"model{suffix}")
    config, params, _ = load_torch(path, CONFIG)
    for key, value in to_state_dict(config, params).items():
        np.testing.assert_array_equal(value, original[key].numpy())


def test_a_legacy_file_that_is_no_zip_is_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(state_dict(CONFIG), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert load_torch(path, CONFIG)[0] == CONFIG


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_read_off_the_weights(tmp_path, name, caplog):
    config = dataclasses.replace(CONFIGS[name], zero_dc=True)
    inferred, _, _ = load_torch(saved(tmp_path, state_dict(config)))
    named = dataclasses.replace(inferred, stems=config.stems)
    if config.time_mixer == "full":  # without a windowed mixer its window means nothing
        named = dataclasses.replace(named, window=config.window)
    assert named == config
    assert "sample_rate 44100" in caplog.text


@pytest.mark.parametrize("name", CONFIGS)
def test_the_yaml_says_the_rest(tmp_path, name):
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


def test_our_own_settings_are_read_too(tmp_path):
    config = dataclasses.replace(CONFIG, window=6)
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "model": config.to_dict()}))
    assert load_torch(saved(tmp_path, state_dict(config)), tmp_path / "model.json")[0] == config
    (tmp_path / "model.json").write_text(json.dumps({"model": {**config.to_dict(), "windw": 3}}))
    with pytest.raises(InputError, match=r"model.json: unknown model field 'windw', did you mean 'window'\?"):
        load_torch(tmp_path / "model.ckpt", tmp_path / "model.json")


@pytest.mark.parametrize(("said", "layers"), [(1, 2), (2, 2), (2, 3), (3, 3)])
def test_the_number_of_mask_layers_is_read_off_the_weights(tmp_path, said, layers):
    config = dataclasses.replace(FULL, mask_layers=layers)
    path = write_yaml(tmp_path / "model.yaml", config, mask_estimator_depth=said)
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


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def damaged(kind, folder):
    """A file that cannot be used, and what its refusal must say."""
    path = folder / "model.ckpt"
    state = state_dict(CONFIG)
    if kind == "truncated":
        whole = io.BytesIO()
        torch.save(state, whole)
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        return path, "not a whole PyTorch checkpoint"
    if kind == "empty":
        path.write_bytes(b"")
        return path, "not a whole PyTorch checkpoint"
    if kind == "text":
        path.write_text("<html>404: not found</html>")
        return path, "not a whole PyTorch checkpoint"
    if kind == "zip of something else":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
        return path, "not a whole PyTorch checkpoint"
    if kind == "code in a zip":
        torch.save({**state, "extra": RunsCode()}, path)
        return path, "a pickle with code in it"
    if kind == "code in a bare pickle":
        path.write_bytes(pickle.dumps(RunsCode()))
        return path, "PyTorch checkpoint|a pickle with code in it"
    if kind == "truncated safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-100])
        return path, "cannot be read as safetensors"
    if kind == "text as safetensors":
        path = path.with_suffix(".safetensors")
        path.write_text("no tensors here at all")
        return path, "cannot be read as safetensors"
    if kind == "another suffix":
        path = path.with_suffix(".bin")
        torch.save(state, path)
        return path, "expected one ending in .ckpt"
    if kind == "missing file":
        return folder / "nowhere.ckpt", "no such file"
    if kind == "no tensors":
        return saved(folder, {"epoch": 3, "config": {"dim": 8}}), "no state dict found .found keys epoch, config"
    if kind == "a list":
        return saved(folder, [1, 2]), "no state dict found .found list"
    if kind == "another model":
        return saved(folder, {"conv.weight": torch.zeros(3)}), "not a band-split or Mel-band RoFormer"
    if kind == "missing keys":
        del state["layers.0.1.layers.0.1.net.4.bias"], state["layers.0.1.norm.gamma"]
        return saved(folder, state), "lacks layers.0.1.layers.0.1.net.4.bias, layers.0.1.norm.gamma: not a whole"
    if kind == "extra keys":
        return saved(folder, {**state, "hyper.alpha": torch.zeros(1)}), "has the unknown hyper.alpha"
    if kind == "wrong shape":
        state["layers.0.0.layers.0.0.to_out.0.weight"] = torch.zeros(8, 9)
        return saved(folder, state), r"to_out.0.weight has the shape \(8, 9\), expected \(8, 8\)"
    if kind == "integers":
        state["layers.0.1.norm.gamma"] = torch.ones(8, dtype=torch.int64)
        return saved(folder, state), "norm.gamma has the dtype int64"
    if kind == "three transformers a block":
        extra = {key.replace("layers.0.1.", "layers.0.2."): value for key, value in state.items()}
        return saved(folder, {**extra, **state}), "linear_transformer_depth"
    if kind == "frequencies that differ":
        config = dataclasses.replace(CONFIG, time_transformer_depth=2)
        state = state_dict(config)
        state["layers.0.0.layers.1.0.rotary_embed.freqs"] = torch.rand(2)
        return saved(folder, state), "differs from the other layers' frequencies"
    if kind == "no mask estimator":
        kept = {key: value for key, value in state.items() if not key.startswith("mask_estimators")}
        return saved(folder, kept), "lacks mask_estimators.0"
    if kind == "no bands":
        kept = {key: value for key, value in state.items() if not key.startswith("band_split")}
        return saved(folder, {**kept, "final_norm.gamma": torch.ones(8)}), "lacks band_split.to_features.0.0.gamma"
    if kind == "scalar sinks":
        return saved(folder, {**state, "sink_tokens": torch.tensor(1.0)}), "lacks sink_tokens"
    if kind == "no heads":
        state["layers.0.0.layers.0.0.to_gates.bias"] = torch.zeros(0)
        return saved(folder, state), "lacks layers.0.0.layers.0.0.to_gates.bias"
    raise ValueError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "empty",
        "text",
        "zip of something else",
        "code in a zip",
        "code in a bare pickle",
        "truncated safetensors",
        "text as safetensors",
        "another suffix",
        "missing file",
        "no tensors",
        "a list",
        "another model",
        "missing keys",
        "extra keys",
        "wrong shape",
        "integers",
        "three transformers a block",
        "frequencies that differ",
        "no mask estimator",
        "no bands",
        "scalar sinks",
        "no heads",
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path, message = damaged(kind, tmp_path)
    with pytest.raises(InputError, match=message) as error:
        load_torch(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_windowed_sinks_are_added_to_a_full_attention_model():
    params = from_state_dict(FULL, state_dict(FULL))
    config, new = add_windowed_sinks(FULL, params, window=6, num_sinks=3, seed=1)
    assert (config.time_mixer, config.window, config.num_sinks, config.zero_dc) == ("windowed_sink", 6, 3, True)
    assert new["sink_tokens"].shape == (3, 12, 8)
    assert abs(new["sink_tokens"]).max() > 0
    assert {name: tree for name, tree in new.items() if name != "sink_tokens"} == params
    again = add_windowed_sinks(FULL, params, window=6, num_sinks=3, seed=1)[1]
    np.testing.assert_array_equal(again["sink_tokens"], new["sink_tokens"])
    other = add_windowed_sinks(FULL, params, window=6, num_sinks=3, seed=2)[1]
    assert (other["sink_tokens"] != new["sink_tokens"]).any()
    jax.tree.map(lambda leaf, shape: None, new, abstract_params(RoFormer(config)))  # the same tree
    with pytest.raises(InputError, match="seed is -1"):
        add_windowed_sinks(FULL, params, window=6, num_sinks=3, seed=-1)
    with pytest.raises(InputError, match="already"):
        add_windowed_sinks(config, new, window=6, num_sinks=3, seed=1)


def test_a_layout_without_the_sinks_serves_the_model_with_them(tmp_path):
    """Half-precision weights of the original stay half, new sinks are float32."""
    config, params, layout = load_torch(saved(tmp_path, state_dict(FULL, torch.float16)), FULL)
    config, params = add_windowed_sinks(config, params, window=6, num_sinks=3, seed=1)
    state = to_state_dict(config, params, layout)
    assert state["sink_tokens"].dtype == np.float32
    assert state["layers.0.0.norm.gamma"].dtype == np.float16


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.zip", "expected a name ending in"), ("no/out.pt", "cannot write .*out.pt: No such file")],
)
def test_where_nothing_can_be_written_nothing_is_left(tmp_path, name, message):
    params = from_state_dict(CONFIG, state_dict(CONFIG))
    with pytest.raises(InputError, match=message):
        save_torch(tmp_path / name, CONFIG, params)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_exact_is_said(tmp_path, caplog):
    path = write_yaml(tmp_path / "model.yaml", CONFIG, zero_dc=False)
    config, _, _ = load_torch(saved(tmp_path, state_dict(CONFIG, torch.float64)), path)
    assert config.zero_dc
    assert "zero_dc is taken as true" in caplog.text
    assert f"{len(list(slots(CONFIG)))} tensors are float64" in caplog.text
