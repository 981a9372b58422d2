"""State dicts to parameters and back."""

import jax
import numpy as np
import pytest
import torch
from support.reference import make_reference
from support.torch_checkpoints import CONFIGS, FULL, assert_same_bits, saved, state_dict

from wroformer_jax.checkpoints.torch_files import load_torch, save_torch
from wroformer_jax.checkpoints.torch_weights import from_state_dict, slots, to_state_dict
from wroformer_jax.errors import InputError
from wroformer_jax.model.params import abstract_params, add_windowed_sinks, num_parameters
from wroformer_jax.model.roformer import RoFormer


@pytest.mark.parametrize("name", CONFIGS)
def test_the_slots_are_the_state_dict_and_fill_the_parameters(name):
    config = CONFIGS[name]
    table = list(slots(config))
    reference = make_reference(config)
    assert [(slot.key, slot.shape) for slot in table] == [
        (key, tuple(value.shape)) for key, value in reference.state_dict().items()
    ]
    # Count through the views how often each weight is reached: once, but for padding.
    covered = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.int32), abstract_params(RoFormer(config)))
    for slot in table:
        leaf = covered
        for part in slot.path:
            leaf = leaf[part]
        slot.view(leaf)[...] += 1
    trained = [value for value in reference.parameters() if value.requires_grad]
    assert num_parameters(config) == sum(value.numel() for value in trained)
    sizes = sum(int(np.prod(slot.shape)) for slot in table)
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(covered)) == sizes
    shared = {("time_rotary", "freqs"), ("freq_rotary", "freqs")}
    for path, leaf in jax.tree.leaves_with_path(covered):
        if tuple(part.key for part in path) not in shared:
            assert leaf.max() == 1, path


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_weights_load_strictly_into_pytorch(tmp_path, name):
    config = CONFIGS[name]
    reference = make_reference(config)
    _, params, _ = load_torch(saved(tmp_path, reference.state_dict()), config)
    save_torch(tmp_path / "out.pt", config, params)
    other = make_reference(config, seed=1)
    other.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    assert_same_bits(other.state_dict(), reference.state_dict())


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
