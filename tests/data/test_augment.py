"""Augmentation: each change and its frequency, and impossible settings."""

import dataclasses

import numpy as np
import pytest

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.data.augment import Change, apply_change, draw_changes
from wroformer_jax.errors import InputError

NONE = Augmentation.none()


@pytest.fixture
def audio():
    audio = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    audio.flags.writeable = False  # so that no change can be made in place
    return audio


def drawn(number=4000, **fields):
    rng = np.random.default_rng(1)
    augmentation = dataclasses.replace(NONE, **fields)
    return [draw_changes(augmentation, rng) for _ in range(number)]


def test_none_changes_nothing(audio):
    assert set(drawn(50)) == {(Change(),)}
    assert apply_change(audio, Change()) is audio


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("channel_swap", lambda audio: audio[::-1]),
        ("polarity", lambda audio: -audio),
        ("time_inversion", lambda audio: audio[:, ::-1]),
    ],
)
def test_flips_are_exact_and_as_frequent_as_asked(audio, field, expected):
    [(always,)] = set(drawn(50, **{field: 1.0}))
    np.testing.assert_array_equal(apply_change(audio, always), expected(audio))
    sometimes = drawn(**{field: 0.3})
    assert set(sometimes) == {(Change(),), (always,)}
    assert sometimes.count((always,)) / len(sometimes) == pytest.approx(0.3, abs=0.03)


def test_gain_is_uniform_in_its_range(audio):
    factors = np.array([change.factor for (change,) in drawn(gain=1.0, gain_range=(0.5, 1.5))])
    assert factors.min() >= 0.5
    assert factors.max() <= 1.5
    np.testing.assert_allclose(np.quantile(factors, [0.1, 0.5, 0.9]), [0.6, 1.0, 1.4], atol=0.04)
    factors = [change.factor for (change,) in drawn(gain=0.25, gain_range=(2, 3))]
    assert np.mean([factor >= 2 for factor in factors]) == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(apply_change(audio, Change(factor=0.7)), audio * np.float32(0.7))


def test_mixup_is_the_mean_of_crops_with_factors_of_their_own():
    stems = drawn(mixup=(0.2, 0.1), mixup_range=(0.5, 1.5))
    numbers = np.bincount([len(changes) for changes in stems]) / len(stems)
    np.testing.assert_allclose(numbers[1:], [0.72, 0.26, 0.02], atol=0.03)
    assert {changes for changes in stems if len(changes) == 1} == {(Change(),)}
    pairs = np.array([[change.factor for change in changes] for changes in stems if len(changes) == 2])
    assert pairs.min() >= 0.25
    assert pairs.max() <= 0.75
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.1


def test_flips_of_mixed_up_crops_are_independent_and_gain_is_common():
    stems = drawn(mixup=(1.0,), polarity=0.5, gain=1.0, gain_range=(2, 4), mixup_range=(1, 1))
    signs = np.sign([[change.factor for change in changes] for changes in stems])
    assert np.mean(signs[:, 0] == signs[:, 1]) == pytest.approx(0.5, abs=0.05)
    assert all(abs(first.factor) == abs(second.factor) for first, second in stems)


def test_all_changes_together(audio):
    changed = apply_change(audio, Change(factor=-2.0, swap_channels=True, invert_time=True))
    np.testing.assert_array_equal(changed, -2 * audio[::-1, ::-1])
    assert changed.dtype == np.float32


def test_public_defaults():
    defaults = Augmentation()
    assert (defaults.gain_range, defaults.mixup, defaults.mixup_range) == ((0.5, 1.5), (0.2, 0.02), (0.5, 1.5))
    assert (defaults.channel_swap, defaults.time_inversion, defaults.polarity) == (0.5, 0.1, 0.5)


def test_travels_through_plain_values():
    augmentation = Augmentation(remix=0.3, gain_range=(0.9, 1.1), mixup=())
    assert Augmentation.from_dict(augmentation.to_dict()) == augmentation
    assert Augmentation.from_dict({"remix": 0}) == dataclasses.replace(Augmentation(), remix=0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"remix": 1.5}, "remix is 1.5, expected a probability from 0 to 1"),
        ({"silence": -0.1}, "silence is -0.1, expected a probability"),
        ({"polarity": True}, "polarity is True, expected a probability"),
        ({"skip_silence": float("nan")}, "skip_silence is nan, expected a probability"),
        ({"mixup": [0.2, "often"]}, "mixup is 'often', expected a probability"),
        ({"mixup": 0.2}, "mixup is 0.2, expected a list of numbers"),
        ({"gain_range": [1.5, 0.5]}, r"gain_range is \(1.5, 0.5\), expected the least and the largest factor"),
        ({"gain_range": [0, 1]}, "gain_range is .* both above 0"),
        ({"mixup_range": [1]}, "mixup_range is .* expected the least and the largest"),
        ({"chanel_swap": 1}, "unknown field of the augmentation 'chanel_swap', did you mean 'channel_swap'?"),
    ],
)
def test_impossible_settings(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Augmentation.from_dict(fields)
