"""The form of attention, and the size of pieces, that suit a device."""

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import tiny_config

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.activations import gelu
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.lanes import aligned_length, num_lanes, padded_head_dim
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.pieces import Sizes
from wroformer_jax.model.roformer import RoFormer

PUBLISHED = ModelConfig(dtype="bfloat16")


def chosen(config, platform):
    found = settled(config, platform)
    return found.attention_impl, found.places_at_once, found.frames_at_once


def test_a_tpu_gets_kernels_and_pieces_that_fit_its_vmem():
    impl, places, frames = chosen(PUBLISHED, "tpu")
    assert impl == "pallas"
    # Queries, keys and values of a piece with their turned twins in float32, and the hidden layer: less than 128 MiB.
    assert 0 < places * 4 * (5 * 512 + 384) < 64 * 2**20
    assert frames > places // PUBLISHED.num_bands


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_what_is_set_stays(platform):
    config = dataclasses.replace(PUBLISHED, attention_impl="scan", places_at_once=77, frames_at_once=9)
    assert settled(config, platform) == config
    assert settled(settled(PUBLISHED, platform)) == settled(PUBLISHED, platform)


def test_a_cpu_gets_the_scan_and_everything_at_once():
    assert chosen(PUBLISHED, "cpu") == ("scan", 0, 0)


def test_products_that_are_kept_are_not_computed_in_pieces():
    assert chosen(dataclasses.replace(PUBLISHED, remat="dots"), "tpu") == ("pallas", 0, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window": 80}, "a window of 80 frames with dim_head 64"),
        ({"time_mixer": "naive", "num_sinks": 0}, "time_mixer 'naive'"),
        ({"num_bands": 3000}, "3000 bands with dim_head 64"),
    ],
)
def test_where_the_kernels_do_not_serve_the_scan_does_and_a_line_says_so(caplog, changes, reason):
    config = dataclasses.replace(PUBLISHED, **changes)
    with caplog.at_level(logging.INFO, logger="wroformer"):
        assert chosen(config, "tpu") == ("scan", 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"attention is computed by jax.lax.scan, since the kernels do not serve {reason}"
    ]
    with pytest.raises(InputError, match=f"attention_impl is 'pallas', but the kernels do not serve {reason}"):
        settled(dataclasses.replace(config, attention_impl="pallas"), "tpu")


def test_a_form_of_another_device_is_refused():
    with pytest.raises(InputError, match="attention_impl is 'pallas', which needs a TPU, but the device is a CPU"):
        settled(dataclasses.replace(PUBLISHED, attention_impl="pallas"), "cpu")
    with pytest.raises(InputError, match="attention_impl is 'cudnn', which needs a GPU, but the device is a TPU"):
        settled(dataclasses.replace(PUBLISHED, attention_impl="cudnn"), "tpu")


@pytest.mark.parametrize(("dim_head", "padded"), [(8, 8), (12, 16), (48, 64), (64, 64), (80, 128), (130, 256)])
def test_heads_fill_lanes(dim_head, padded):
    config = dataclasses.replace(PUBLISHED, dim_head=dim_head, heads=3)
    assert padded_head_dim(dim_head) == padded
    assert num_lanes(config) % 128 == 0
    assert 0 <= num_lanes(config) - 3 * padded < 128


def test_parameters_do_not_depend_on_the_form():
    config = tiny_config()
    expected = abstract_params(RoFormer(config))
    assert abstract_params(RoFormer(dataclasses.replace(config, attention_impl="interpret"))) == expected


@pytest.mark.parametrize("num_hops", [50, 800, 6000, 24_001])
@pytest.mark.parametrize("places", [None, 300, 16_384])
def test_runs_hold_all_frames_and_tokens(num_hops, places):
    config = settled(dataclasses.replace(PUBLISHED, places_at_once=places), "tpu")
    length = aligned_length(config, num_hops + 1 + config.num_sinks)
    sizes = Sizes.of(config, num_hops, length=length)
    assert sizes.padded_tokens == length
    assert sizes.frame_runs * sizes.frames >= num_hops + 1
    assert config.num_sinks + sizes.frame_runs * sizes.frames <= length
    assert sizes.tokens % 8 == 0
    assert sizes.bands * sizes.groups == config.num_bands


@pytest.mark.parametrize("memory", [{"places_at_once": 0}, {"remat": "dots"}])
def test_one_piece_is_one_piece_also_with_padding(memory):
    config = settled(dataclasses.replace(PUBLISHED, **memory), "tpu")
    sizes = Sizes.of(config, 800, length=aligned_length(config, 809))
    assert (sizes.frame_runs, sizes.token_runs, sizes.groups) == (1, 1, 1)


def test_pieces_that_are_smaller_than_a_tile_are_as_small_as_a_tile():
    config = settled(dataclasses.replace(PUBLISHED, places_at_once=300), "tpu")
    sizes = Sizes.of(config, 800, length=aligned_length(config, 809))
    assert (sizes.tokens, sizes.bands) == (8, 1)


def test_gelu_before_products_of_bfloat16_is_exact_to_its_promise():
    x = jnp.linspace(-20, 20, 400_001)
    exact = gelu(x, "float32")
    np.testing.assert_allclose(gelu(x, "bfloat16"), exact, atol=2.6e-5, rtol=0)
    assert abs(gelu(x, "bfloat16") - exact).max() > 0
