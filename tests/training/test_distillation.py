"""Masks of a teacher that separates windows: which frames are compared, and which parameters the loss moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.helpers import music
from support.tiny_model import CONFIG

from wroformer_jax.errors import InputError
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.training.distillation import Masks, check_teacher, compared_frames, mask_distance, teacher_masks

FULL = dataclasses.replace(CONFIG, time_mixer="full", num_sinks=0, depth=1)
# Each frame sees itself alone, so its mask does not depend on where the audio is cut.
LOCAL = dataclasses.replace(FULL, time_mixer="windowed_sink", window=0)


def noise(samples):
    return jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((1, 2, samples)), jnp.float32)


@functools.cache
def jitted_masks(model):
    return jax.jit(lambda params, audio: model.apply({"params": params}, audio, method="masks"))


def masks_of(model, params, audio):
    return Masks(*jitted_masks(model)(params, audio))


@pytest.mark.slow
def test_each_window_is_heard_alone():
    model, hop, frames = RoFormer(FULL), FULL.stft_hop_length, 12
    params = init_params(model, 0)
    audio = jnp.asarray(music(np.random.default_rng(0), 2, 2, hop * (3 * frames + 5)))  # 3 windows and a part of one
    found = jax.jit(lambda p, a: teacher_masks(model, p, a, window_samples=hop * frames))(params, audio)
    counts = compared_frames(model.config, audio.shape[-1], hop * frames)
    assert len(counts) == found.real.shape[3] == 3 * frames
    for number in range(3):
        alone = masks_of(model, params, audio[..., number * hop * frames : (number + 1) * hop * frames])
        for part, whole in zip(alone, found, strict=True):
            there = whole[..., number * frames : (number + 1) * frames, :]
            np.testing.assert_allclose(there, part[..., :frames, :], atol=2e-6)


# Half an STFT window is 1.28, 2 and 1 hops.
@pytest.mark.parametrize("hop", [100, *(pytest.param(hop, marks=pytest.mark.slow) for hop in (64, 128))])
def test_the_frames_that_count_are_those_that_the_borders_do_not_touch(hop):
    model = RoFormer(dataclasses.replace(LOCAL, stft_hop_length=hop))
    params, frames = init_params(model, 0), 12
    audio = noise(hop * (3 * frames + 5))
    apart = jax.jit(lambda p, a: teacher_masks(model, p, a, window_samples=hop * frames))(params, audio)
    whole = masks_of(model, params, audio)
    counts = compared_frames(model.config, audio.shape[-1], hop * frames)
    differs = np.zeros(len(counts), bool)
    for windowed, uncut in zip(apart, whole, strict=True):
        difference = np.abs(np.asarray(windowed) - np.asarray(uncut)[..., : len(counts), :])
        differs |= difference.max(axis=(0, 1, 2, 4)) > 1e-5
    np.testing.assert_array_equal(differs, ~counts)
    assert counts[0]  # the beginning of the audio is one of a window, too
    assert 0.5 < counts.mean() < 1


def test_audio_that_is_as_long_as_a_window_is_heard_at_once():
    model, samples = RoFormer(FULL), 64 * 20
    params, audio = init_params(model, 0), noise(samples)
    found = jax.jit(lambda p, a: teacher_masks(model, p, a, window_samples=samples))(params, audio)
    for ours, theirs in zip(found, masks_of(model, params, audio), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for window in (samples, 10 * samples):
        counts = compared_frames(FULL, samples, window)
        assert counts.all()
        assert len(counts) == found.real.shape[3] == 21


def random_masks(seed, frames=8):
    rng = np.random.default_rng(seed)
    return Masks(*(jnp.asarray(rng.standard_normal((2, 1, 2, frames, 5)), jnp.float32) for _ in range(2)))


def test_the_distance_is_the_mean_modulus_over_the_frames_that_count():
    student, teacher = random_masks(0, frames=11), random_masks(1, frames=8)
    counts = np.array([1, 1, 0, 0, 1, 1, 1, 0], bool)
    difference = (student.real[..., :8, :] - teacher.real) + 1j * (student.imag[..., :8, :] - teacher.imag)
    expected = np.abs(np.asarray(difference))[..., counts, :].mean()
    assert float(mask_distance(student, teacher, counts)) == pytest.approx(float(expected), rel=1e-6)

    elsewhere = Masks(*(mask.at[..., ~counts, :].add(100) for mask in teacher))
    assert float(mask_distance(student, elsewhere, counts)) == pytest.approx(float(expected), rel=1e-6)


def test_equal_masks_have_no_distance_and_no_gradient():
    masks, counts = random_masks(0), np.ones(8, bool)
    distance, gradient = jax.value_and_grad(mask_distance)(masks, masks, counts)
    assert float(distance) == 0
    assert not any(map(np.any, gradient))


@pytest.mark.slow
def test_the_gradient_is_the_students_alone():
    student, teacher = RoFormer(dataclasses.replace(CONFIG, depth=1, remat="none")), RoFormer(FULL)
    audio, window = noise(64 * 40), 64 * 20

    def loss(ours, theirs):
        masks = Masks(*student.apply({"params": ours}, audio, method="masks"))
        given = teacher_masks(teacher, theirs, audio, window_samples=window)
        return mask_distance(masks, given, compared_frames(FULL, audio.shape[-1], window))

    of_student, of_teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(init_params(student, 0), init_params(teacher, 1))
    assert not any(map(np.any, jax.tree.leaves(of_teacher)))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_student["blocks"]))
    assert np.any(of_student["sink_tokens"])


@pytest.mark.parametrize(
    "changed",
    [
        {"stems": ("drums",)},
        {"stems": ("vocals", "drums")},
        {"channels": 1},
        {"sample_rate": 48000},
        {"stft_n_fft": 512},
        {"stft_hop_length": 32},
        {"stft_win_length": 128},
    ],
)
def test_a_teacher_of_other_masks_is_refused(changed):
    [(name, value)] = changed.items()
    with pytest.raises(InputError, match=f"the teacher has {name} = ") as error:
        check_teacher(dataclasses.replace(FULL, **changed), CONFIG)
    assert repr(value) in str(error.value)
    assert repr(getattr(CONFIG, name)) in str(error.value)


def test_a_teacher_may_have_other_bands_and_sizes():
    check_teacher(dataclasses.replace(FULL, num_bands=4, dim=8, depth=3, mask_layers=3, zero_dc=False), CONFIG)
