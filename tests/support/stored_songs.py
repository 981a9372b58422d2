"""Writes small sets of random songs as `wroformer prepare` does, and watches which records are read."""

import numpy as np

from wroformer_jax.data.record_writer import Storage, finish_set, shard_name, write_shard

RATE = 500  # samples a second, and a segment
STORAGE = Storage(sample_rate=RATE, segment_seconds=1)

# Lengths of the stems in samples: unequal, whole segments, one sample, none.
LENGTHS = {
    "one song": {"vocals": 2750, "drums": 2750, "bass": 1000},
    "Ä/ö - 歌 🎵": {"vocals": 1, "drums": 499, "other": 501, "empty": 0},
    "third": {"vocals": 3999, "bass": 1500},
}


def random_songs(lengths=LENGTHS, bits=16, channels=2, seed=0):
    """Returns random audio of `bits` bits per sample for each stem of each song."""
    rng, full_scale = np.random.default_rng(seed), 2 ** (bits - 1)
    return {
        song: {
            stem: (rng.integers(-full_scale, full_scale, (channels, samples)) / full_scale).astype(np.float32)
            for stem, samples in stems.items()
        }
        for song, stems in lengths.items()
    }


def in_blocks(audio, seed=0):
    """Yields the audio in blocks of random length, the first of which is empty."""
    rng, done = np.random.default_rng(seed), 0
    yield audio[:, :0]
    while done < audio.shape[-1]:
        block = audio[:, done : done + int(rng.integers(1, 1200))]
        done += block.shape[-1]
        yield block


def write_set(directory, splits, storage=STORAGE, songs_in_shard=2):
    """Writes {split: {song: {stem: audio}}} as a set."""
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, songs in splits.items():
        names = list(songs)
        groups = [names[i : i + songs_in_shard] for i in range(0, len(names), songs_in_shard)]
        written[split] = []
        for number, group in enumerate(groups):
            name = shard_name(split, number, len(groups))
            stream = ((song, {stem: in_blocks(audio) for stem, audio in songs[song].items()}) for song in group)
            written[split].append((name, write_shard(directory / name, stream, storage)))
    finish_set(directory, storage, written)
    return directory


def watch_records(monkeypatch):
    """Returns a list that grows by the number, in its shard, of each record that is read from now on."""
    from array_record.python import array_record_module

    numbers = []

    class Watched(array_record_module.ArrayRecordReader):
        def read(self, asked):
            numbers.extend(asked)
            return super().read(asked)

    monkeypatch.setattr(array_record_module, "ArrayRecordReader", Watched)
    return numbers
