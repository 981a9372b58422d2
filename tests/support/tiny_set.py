"""Writes prepared sets that are small enough to be made in a test."""

import numpy as np

from wroformer_jax.data.record_set import RecordSet
from wroformer_jax.data.record_writer import Storage, finish_set, shard_name, write_shard

RATE = 1000  # Hz
STEMS = ("bass", "drums", "other", "vocals")


def noise(seed, seconds, channels=2):
    """Returns noise of exact 16-bit values."""
    integers = np.random.default_rng(seed).integers(-8000, 8000, (channels, round(seconds * RATE)))
    return integers.astype(np.float32) / 32768


def five_songs():
    """Returns songs of 1.5 to 5.5 seconds; the last has no drums."""
    songs = {f"song {n}": {stem: noise((n, s), n + 1.5) for s, stem in enumerate(STEMS)} for n in range(5)}
    del songs["song 4"]["drums"]
    return songs


def make_set(path, songs, split="train", **storage):
    """Writes songs, {name: {stem: audio}}, as a set with segments of one second, and opens it."""
    storage = Storage(**{"sample_rate": RATE, "segment_seconds": 1, **storage})
    path.mkdir(parents=True, exist_ok=True)
    name = shard_name(split, 0, 1)
    content = ((song, {stem: [audio] for stem, audio in stems.items()}) for song, stems in songs.items())
    finish_set(path, storage, {split: [(name, write_shard(path / name, content, storage))]})
    return RecordSet.open(path)
