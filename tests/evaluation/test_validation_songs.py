"""Scores of whole songs that are held in memory, as validation computes them."""

import numpy as np
import pytest
from support.tiny_training import tiny_run

from wroformer_jax.evaluation.metrics import usdr
from wroformer_jax.evaluation.validation_songs import (
    SongScores,
    ValidationSong,
    mean_scores,
    separate_and_score,
    separate_song,
)
from wroformer_jax.model.params import init_params
from wroformer_jax.model.roformer import RoFormer

CONFIG = tiny_run(model={"stems": ["vocals", "drums"]}).model


@pytest.fixture(scope="module")
def params():
    return init_params(RoFormer(CONFIG), 0)


def test_each_stem_has_a_score_unless_it_is_silent(params):
    rng = np.random.default_rng(0)
    mixture, targets = 0.1 * rng.standard_normal((2, 7999)), 0.1 * rng.standard_normal((2, 2, 7999))
    song = ValidationSong(mixture.astype(np.float32), targets.astype(np.float32))
    song.targets[1] = 0
    kept = []
    scores = separate_and_score(
        RoFormer(CONFIG), params, song, chunk_seconds=None, on_separated=lambda *each: kept.append(each)
    )
    [(heard, estimates)] = kept
    assert heard is song
    np.testing.assert_array_equal(estimates, separate_song(RoFormer(CONFIG), params, song.mixture, chunk_seconds=None))
    assert scores.estimates[0] == usdr(song.targets[0], estimates[0])
    assert scores.mixture[0] == usdr(song.targets[0], song.mixture)
    assert np.isnan([scores.estimates[1], scores.mixture[1]]).all()


def test_means_leave_out_what_has_no_score():
    songs = [SongScores([6.0, 2.0], [1.0, -1.0]), SongScores([8.0, np.nan], [3.0, np.nan])]
    assert mean_scores(["vocals", "drums"], songs) == {
        "vocals_usdr": 7.0,
        "drums_usdr": 2.0,
        "usdr": 4.5,
        "mixture_usdr": 0.5,
        "improvement": 4.0,
    }


@pytest.mark.parametrize("chunk_seconds", [None, 0.2])
def test_songs_of_any_length_are_separated(params, chunk_seconds):
    mixture = 0.1 * np.random.default_rng(0).standard_normal((2, 7999), dtype=np.float32)
    estimates = separate_song(RoFormer(CONFIG), params, mixture, chunk_seconds=chunk_seconds)
    assert estimates.shape == (2, 2, 7999)
