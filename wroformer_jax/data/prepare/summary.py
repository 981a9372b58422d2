"""Summarises a prepared set."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wroformer_jax.data.prepare.find_stems import counted
from wroformer_jax.data.record_writer import Storage
from wroformer_jax.stems import MIXTURE

# Kinds of notes on songs, and the sentence that counts the songs with such a note.
_NOTES = {
    "padded": "had stems of different lengths: the shorter are padded with silence",
    "resampled": "had files of another sample rate: they are resampled",
    "left out": "had a file that is the sum of other stems: it is left out",
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A finished set."""

    directory: str
    storage: Storage
    splits: Mapping[str, Sequence[Mapping[str, Any]]]  # for each shard, the description that `write_shard` returned
    skipped: tuple[tuple[str, str], ...]  # (song, reason) for each bad file; its song was left out

    def songs(self, split: str) -> Iterator[Mapping[str, Any]]:
        for part in self.splits[split]:
            yield from part["songs"]

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a table, headings first: songs, hours and silence of each split and of each of its stems."""
        rows = [("split", "stem", "songs", "hours", "silent")]
        for split in self.splits:
            songs = list(self.songs(split))
            samples = sum(song["samples"] for song in songs)
            rows.append((split, "", str(len(songs)), f"{samples / self.storage.sample_rate / 3600:.2f}", ""))
            stems = sorted({stem for song in songs for stem in song["stems"]}, key=lambda stem: (stem == MIXTURE, stem))
            rows += [("", *self._stem(songs, stem)) for stem in stems]
        return rows

    def summary(self) -> Iterator[str]:
        """Yields sentences: the size of the set, what was changed in its songs, and which songs were skipped."""
        parts = [part for parts in self.splits.values() for part in parts]
        songs = [song for split in self.splits for song in self.songs(split)]
        size = sum(part["bytes"] for part in parts) / 1e6
        amount = f"{size / 1e3:,.2f} GB" if size >= 1e3 else f"{size:,.1f} MB"
        yield (
            f"{self.directory}: {amount} in {counted(len(parts), 'shard')}; {self.storage.encoding}, "
            f"{self.storage.sample_rate} Hz, segments of {self.storage.segment_seconds} s"
        )
        kinds = collections.Counter(note.split(":")[0] for song in songs for note in song["notes"])
        for kind, what in _NOTES.items():
            if count := kinds[kind]:
                yield f"{counted(count, 'song')} {what}"
        names = list(dict.fromkeys(name for name, _ in self.skipped))
        if names:
            yield f"{counted(len(names), 'song')} skipped for bad files: {', '.join(names)}"

    def _stem(self, songs: Iterable[Mapping[str, Any]], stem: str) -> tuple[str, ...]:
        stored = [song["stems"][stem] for song in songs if stem in song["stems"]]
        hours = sum(entry["samples"] for entry in stored) / self.storage.sample_rate / 3600
        marks = "".join(entry["active"] for entry in stored)
        return stem, str(len(stored)), f"{hours:.2f}", f"{marks.count('0') / max(len(marks), 1):.1%}"
