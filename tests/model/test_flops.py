"""The analytic count of FLOPs equals that of the traced program, and is near XLA's and the paper's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_training import tiny_run

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.flops import forward_flops, num_frames, published_score_entries, score_entries
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.training.losses import l1
from wroformer_jax.training.throughput import mfu, peak_flops, step_flops

# Bands of one width, so that none is padded; full attention, whose products are not cut into blocks at this length.
PLAIN = ModelConfig(
    band_scheme="band_split",
    freqs_per_bands=(13,) * 5,
    stems=("vocals", "drums"),
    sample_rate=8000,
    stft_n_fft=128,
    stft_hop_length=64,
    stft_win_length=128,
    dim=48,
    depth=2,
    time_transformer_depth=2,
    heads=3,
    dim_head=16,
    dim_feed_forward=96,
    mask_layers=3,
    dim_mask=80,
    time_mixer="full",
    num_sinks=0,
    remat="none",
)
SAMPLES = 64 * 40
FULL = ModelConfig(time_mixer="full", num_sinks=0)


def described(config, samples=SAMPLES):
    audio = jax.ShapeDtypeStruct((1, config.channels, samples), jnp.float32)
    return abstract_params(RoFormer(config)), audio


def forward(config):
    return lambda params, audio: RoFormer(config).apply({"params": params}, audio)


def products(jaxpr):
    """Returns the FLOPs of all matrix products of a traced program.

    Those in a loop count once per iteration; of the branches for several kinds of device the costliest counts.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inputs = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(inputs[axis] for axis in contracted)
        if equation.primitive.name == "cond":
            total += max(products(branch.jaxpr) for branch in equation.params["branches"])
            continue
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(inner, "eqns"):
                total += products(getattr(inner, "jaxpr", inner)) * equation.params.get("length", 1)
    return total


def traced_products(function, config, samples=SAMPLES):
    return products(jax.make_jaxpr(function)(*described(config, samples)).jaxpr)


@pytest.mark.parametrize("change", [{}, {"channels": 1, "stems": ("vocals",), "mask_layers": 1}, {"num_sinks": 3}])
def test_the_count_is_that_of_the_products_in_the_program(change):
    config = dataclasses.replace(PLAIN, **change)
    assert sum(forward_flops(config, num_frames(config, SAMPLES)).values()) == traced_products(forward(config), config)


def test_narrow_bands_are_counted_without_their_padding():
    config = dataclasses.replace(PLAIN, freqs_per_bands=(2, 4, 5, 7, 8, 10, 13, 16))  # more widths than groups
    counted, traced = sum(forward_flops(config, 41).values()), traced_products(forward(config), config)
    assert counted < traced < 1.05 * counted


def test_a_step_is_three_forward_passes():
    def loss(params, audio):
        return l1(forward(PLAIN)(params, audio), jnp.zeros((1, 2, 2, SAMPLES)))

    counted = 3 * sum(forward_flops(PLAIN, num_frames(PLAIN, SAMPLES)).values())
    assert traced_products(jax.grad(loss), PLAIN) == pytest.approx(counted, rel=0.01)


def test_the_count_is_near_that_of_xla():
    """XLA adds FFTs, norms and the like, a few percent here, and counts a loop once: the only one here goes once."""
    config = dataclasses.replace(PLAIN, depth=1, dim=192, dim_feed_forward=768, dim_mask=192, dim_head=64)
    compiled = jax.jit(forward(config)).lower(*described(config)).compile()
    counted = sum(forward_flops(config, num_frames(config, SAMPLES)).values())
    assert counted <= compiled.cost_analysis()["flops"] < 1.06 * counted


@pytest.mark.parametrize(("window", "num_sinks", "frames"), [(10, 8, 60), (5, 0, 9), (0, 2, 7), (40, 3, 12), (7, 1, 1)])
def test_scores_are_the_pairs_that_the_mask_shows(window, num_sinks, frames):
    config = dataclasses.replace(PLAIN, time_mixer="windowed_sink", window=window, num_sinks=num_sinks)
    i, j = np.indices((num_sinks + frames,) * 2)
    shown = (i < num_sinks) | (j < num_sinks) | (abs(i - j) <= window // 2)
    assert score_entries(config, frames) == shown.sum()


def test_the_scores_of_the_paper():
    """For 8 s at 44.1 kHz the 641,601 scores per head become 14,418, 44.5 times fewer, as the paper counts them."""
    wsa, frames = ModelConfig(), num_frames(ModelConfig(), 8 * 44100)
    assert frames == 801
    full, windowed = (published_score_entries(config, frames) for config in (FULL, wsa))
    assert (full, windowed) == (641_601, 14_418)
    assert full / windowed == pytest.approx(44.5, abs=0.05)
    assert score_entries(FULL, frames) == 641_601
    own_places, over_the_ends, queries_of_sinks = 801, 2 * (5 + 4 + 3 + 2 + 1), 8 * 809
    assert score_entries(wsa, frames) == 14_418 + own_places - over_the_ends + queries_of_sinks


def test_windowed_sinks_make_the_cost_linear():
    scores = [forward_flops(ModelConfig(), frames)["time_scores"] for frames in (10_000, 20_000)]
    assert scores[1] / scores[0] == pytest.approx(2, rel=1e-3)
    scores = [forward_flops(FULL, frames)["time_scores"] for frames in (10_000, 20_000)]
    assert scores[1] / scores[0] == pytest.approx(4, rel=1e-3)


def test_a_step_of_a_run_with_and_without_a_teacher():
    run = tiny_run(seconds=0.1, teacher_seconds=0.04)  # 1536 samples in whole hops, 13 frames; windows of 640, 6 frames
    alone = step_flops(run)
    assert alone == 2 * 3 * sum(forward_flops(run.model, 13).values())
    teacher = dataclasses.replace(run.model, time_mixer="full", num_sinks=0)
    assert step_flops(run, teacher) == alone + 2 * 2 * sum(forward_flops(teacher, 6).values())
    assert step_flops(dataclasses.replace(run, teacher_seconds=8.0), teacher) == alone + 2 * sum(
        forward_flops(teacher, 13).values()
    )


def test_utilisation():
    assert mfu(275 * 10**12, 2.0, "TPU v4", 1) == 0.5
    assert mfu(989 * 10**12, 0.5, "NVIDIA H200", 8) == 0.25
    assert peak_flops("TPU7x") == 2307e12 / 2  # a chip is two devices
    assert peak_flops("cpu") is None
    assert mfu(10**12, 1.0, "cpu", 1) is None
