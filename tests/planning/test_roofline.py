"""The estimate of a step's time: what it adds up, and what makes it grow."""

import dataclasses

import pytest

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.flops import forward_flops, num_frames
from wroformer_jax.parallel.hardware import Hardware, known_hardware
from wroformer_jax.planning.roofline import Work, activation_bytes, estimate_times, forward_work, training_passes

DEVICE = Hardware(bfloat16=100.0, float32=10.0, hbm=1e9, hbm_bandwidth=50.0, links=20.0)
CONFIG = ModelConfig(band_scheme="band_split", dtype="bfloat16")
SAMPLES = 8 * 44100


def test_the_parts_their_largest_and_their_sum():
    work = Work(bfloat16_flops=800.0, float32_flops=20.0, activation_bytes=100.0, parameter_bytes=25.0)
    found = estimate_times(work, sent_bytes=10.0, device=DEVICE, num_devices=4)
    assert (found.compute_seconds, found.memory_seconds, found.network_seconds) == (2.5, 1.0, 0.5)
    assert (found.overlapped, found.serial, found.bound) == (2.5, 4.0, "compute")
    assert (found.flops, found.hbm_bytes) == (205.0, 50.0)


def test_a_forward_pass():
    work = forward_work(CONFIG, SAMPLES, examples=3, num_parameters=1000)
    frames = num_frames(CONFIG, SAMPLES)
    assert (work.bfloat16_flops, work.float32_flops) == (3 * sum(forward_flops(CONFIG, frames).values()), 0)
    assert work.activation_bytes == 3 * activation_bytes(CONFIG, frames)
    assert work.parameter_bytes == 4000
    wide = forward_work(dataclasses.replace(CONFIG, dtype="float32"), SAMPLES, 3, 1000)
    assert (wide.bfloat16_flops, wide.float32_flops) == (0, work.bfloat16_flops)
    assert work.activation_bytes < wide.activation_bytes < 2 * work.activation_bytes


def test_works_add_up():
    assert Work(1.0, 2.0, 3.0, 4.0) + Work(10.0, 20.0, 30.0, 40.0) == Work(11.0, 22.0, 33.0, 44.0)


@pytest.mark.parametrize(
    ("memory", "masks", "time_attention", "rest"),
    [
        ({"remat": "none"}, 3, 3, 3),
        ({"remat": "dots"}, 3, 3, 3),
        ({"remat": "block"}, 3, 4, 4),
        ({"remat": "offload"}, 3, 4, 4),
        ({"remat": "none", "places_at_once": 1000}, 4, 4, 4),
        ({"remat": "none", "places_at_once": 60_000}, 3, 3, 3),  # a single piece
        ({"remat": "block", "places_at_once": 1000}, 4, 5, 4),
        ({"remat": "block", "blocks_per_save": 2}, 3, 5, 5),
        ({"remat": "offload", "blocks_per_save": 2, "places_at_once": 1000}, 4, 6, 5),
    ],
    ids=str,
)
def test_what_is_computed_again(memory, masks, time_attention, rest):
    config = dataclasses.replace(CONFIG, **memory)
    passes = training_passes(config, SAMPLES)
    parts = forward_flops(config, num_frames(config, SAMPLES))
    assert passes.keys() == parts.keys()
    assert [passes[name] for name in ("band_split", "masks")] == [masks, masks]
    assert [passes[name] for name in ("time_projections", "time_scores")] == [time_attention, time_attention]
    assert {passes[name] for name in parts if "freq" in name or "feed_forward" in name} == {rest}
    work = forward_work(config, SAMPLES, 2, 1000, passes)
    assert work.flops == 2 * sum(passes[name] * flops for name, flops in parts.items())
    mean = work.flops / forward_work(config, SAMPLES, 2, 1000).flops
    assert work.parameter_bytes == pytest.approx(4000 * mean)


def test_memory_traffic_is_linear_in_the_length():
    assert activation_bytes(CONFIG, 16_000) / activation_bytes(CONFIG, 8_000) == pytest.approx(2, rel=1e-3)


def test_devices_by_their_names():
    assert known_hardware("cpu") is None
    v5e = known_hardware("TPU v5 lite")
    assert (v5e.bfloat16, v5e.hbm, v5e.hbm_bandwidth, v5e.links) == (197e12, 16 * 2**30, 819e9, 200e9)
    assert known_hardware("TPU7x").bfloat16 == 2307e12 / 2  # a chip is two devices
    assert known_hardware("NVIDIA H200").hbm == 141e9
