"""Songs to prepare."""

import pytest
from support.preparing import LOW_RATE, SHARD_SECONDS
from support.stems_on_disk import make_song


@pytest.fixture
def data(tmp_path):
    """Five songs, one of them to test on."""
    for index in range(4):
        make_song(tmp_path / "data" / "train" / f"Song {index}", index)
    make_song(tmp_path / "data" / "test" / "Song 4", 4, stems=("vocals", "drums", "mixture"))
    return tmp_path / "data"


@pytest.fixture
def long_songs(tmp_path):
    """Five songs, one of them to test on, each of which becomes a shard."""
    samples = SHARD_SECONDS // 2 * LOW_RATE
    for index in range(4):
        make_song(tmp_path / "data" / "train" / f"Song {index}", index, samples=samples, rate=LOW_RATE)
    make_song(tmp_path / "data" / "test" / "Song 4", 4, samples=samples, rate=LOW_RATE)
    return tmp_path / "data"
