"""Fixtures of the tests that evaluate songs."""

import pytest
from support.evaluated_songs import make_song
from support.separation_models import GainModel

from wroformer_jax.checkpoints import loading


@pytest.fixture
def data(tmp_path):
    """Three songs in the layout of MUSDB18-HQ."""
    for index in range(3):
        make_song(tmp_path / "data" / "test" / f"Song {index}", index)
    return tmp_path / "data"


@pytest.fixture
def model(monkeypatch):
    """Stands in for every checkpoint: its vocals are the mixture times `gain`, so that their scores are known."""
    model = GainModel()
    model.gain = 0.25
    monkeypatch.setattr(loading, "load", lambda source, *, config=None: (model, model.params(model.gain)))
    return model
