"""Prepares small sets in tests, and writes the songs that are prepared."""

from support.stems_on_disk import RATE, damage, make_song
from wroformer_jax.data.prepare.write import prepare

LOW_RATE = 1000  # Hz, at which songs are quickly long enough for a shard of their own
SHARD_SECONDS = 60  # seconds of stems after which a shard of a small split is closed


def damaged_songs(folder, seconds):
    """Four songs of two stems; two of them have a file that is damaged in its middle."""
    for index in range(4):
        make_song(folder / f"Song {index}", index, suffix=".flac", samples=seconds * RATE)
    for name in ("Song 1/drums", "Song 3/vocals"):
        damage(folder / f"{name}.flac")
    return folder


def interrupt_before_publishing(line):
    """To be passed as `say`, whose last line comes when all shards are written."""
    if line.startswith("wrote "):
        raise KeyboardInterrupt


def run(source, directory, **settings):
    """Prepares a set; returns its summary and the lines that were said."""
    said = []
    usual = {"sample_rate": RATE, "segment_seconds": 1, "say": said.append}
    return prepare(source, directory, **(usual | settings)), "\n".join(said)


def run_long(source, directory, **settings):
    return run(source, directory, sample_rate=LOW_RATE, **settings)


def read(record_set, split, name, stem):
    (song,) = (song for song in record_set.songs(split) if song.name == name)
    return record_set.read(song, stem, 0, song.samples)
