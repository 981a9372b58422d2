"""Reads prepared sets: lists their songs, and reads any crop of a stem without reading more segments than it touches.

record_writer.py writes sets and describes their files.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import math
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax.data import segments
from wroformer_jax.data.record_writer import DATASET, FORMAT, INDEX, INFO
from wroformer_jax.data.tf_example import unpack
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import Place, access, as_place, fetch, is_remote, num_bytes


@dataclasses.dataclass(frozen=True)
class StoredStem:
    """A stem of a stored song."""

    first: int  # number of the stem's first record in the split
    samples: int  # length of this stem, for each channel
    levels: tuple[float, ...]  # RMS of each segment in dB of full scale, -inf for digital silence
    active: str  # for each second, the last one included, "1" if its RMS exceeds -60 dB of full scale, else "0"


@dataclasses.dataclass(frozen=True)
class StoredSong:
    """A song of a set."""

    name: str
    split: str
    samples: int  # length of the longest stem, for each channel
    stems: Mapping[str, StoredStem]  # with "mixture" if that is stored
    notes: tuple[str, ...]  # how it was changed when the set was prepared


@dataclasses.dataclass(frozen=True)
class _Shard:
    name: str
    bytes: int
    records: int


class RecordSet:
    """A prepared set, opened by `RecordSet.open`.

    A set can be pickled, and several threads and processes can read from it: each process opens a file when it first
    reads from it. Files in a bucket are then downloaded into a local cache (`io.buckets.fetch`).

    Attributes:
      path: a local path or gs://.
      sample_rate: of all stems, in Hz.
      channels: of all stems, 1 or 2.
      segment_samples: length of a segment; the last segment of a stem may be shorter.
      encoding: "lossless", "int16" or "float32" (segments.py).
      stems: the names of all stems in alphabetical order, without "mixture".
      splits: the names of the splits.
      fingerprint: a short text that identifies the contents of the set.
      most_open_files: how many shards a process keeps open; many systems allow a process 1,024 files.
    """

    path: str
    sample_rate: int
    channels: int
    segment_samples: int
    encoding: str
    stems: tuple[str, ...]
    splits: tuple[str, ...]
    fingerprint: str
    most_open_files: int = 256

    def __init__(self, path: str, index: Mapping[str, Any]) -> None:
        """Use `RecordSet.open`. `index` is the content of index.json."""
        self.path = path
        self.sample_rate = index["sample_rate"]
        self.channels = index["channels"]
        self.segment_samples = index["segment_samples"]
        self.encoding = index["encoding"]
        self.stems = tuple(index["stems"])
        self.splits = tuple(index["splits"])
        # The version that wrote a set does not matter.
        content = json.dumps({**index, "wroformer": None}, sort_keys=True)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._songs = {
            split: tuple(_song(split, song) for song in part["songs"]) for split, part in index["splits"].items()
        }
        self._shards = {
            split: tuple(_Shard(**shard) for shard in part["shards"]) for split, part in index["splits"].items()
        }
        # For each shard of a split, the number of the first record after it.
        self._ends = {
            split: tuple(itertools.accumulate(shard.records for shard in shards))
            for split, shards in self._shards.items()
        }
        self._forget_files()

    @classmethod
    def open(cls, path: str | os.PathLike) -> RecordSet:
        """Reads the index of a set and checks that all of its files exist.

        Args:
          path: the directory of the set, local or in a bucket (gs://).

        Raises:
          InputError: `path` is no set, or an unfinished one (`wroformer prepare` was interrupted), or one of another
            format; a file is missing or truncated; the bucket cannot be reached.
        """
        directory = as_place(path)
        index = _read_index(directory)
        if "format" not in index:
            raise InputError(
                f"{directory} is not a prepared set: its {INDEX} is something else; expected a directory made by "
                "`wroformer prepare`"
            )
        if (found := index.get("format")) != FORMAT:
            raise InputError(
                f"{directory} is a set of format {found}, written by wroformer-jax {index.get('wroformer')}; this "
                f"version reads format {FORMAT}: prepare it again, or use that version"
            )
        try:
            record_set = cls(os.fspath(directory), index)
            record_set._check_records()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{directory / INDEX} is damaged ({error!r}): restore it, or prepare the set again"
            ) from error
        record_set._check_files()
        return record_set

    def songs(self, split: str) -> tuple[StoredSong, ...]:
        """Returns the songs of a split.

        Raises:
          InputError: the set has no such split.
        """
        if split not in self._songs:
            raise InputError(f"{self.path} has no split {split!r}, only {', '.join(self.splits)}")
        return self._songs[split]

    def read(self, song: StoredSong, stem: str, start: int, stop: int) -> Float32[np.ndarray, "channel sample"]:
        """Reads a crop of a stem, and only the segments that it touches.

        Args:
          song: a song of this set.
          stem: name of a stem; one that the song does not have is silent.
          start: first sample; the stem is silent before 0 and after its end.
          stop: the sample after the last one.

        Returns:
          `stop - start` samples, full scale 1.

        Raises:
          InputError: a file is damaged or missing, or cannot be downloaded.
        """
        crop = np.zeros((self.channels, stop - start), np.float32)
        stored = song.stems.get(stem)
        first, last = max(start, 0), min(stop, stored.samples if stored else 0)
        while first < last:
            segment, begin = divmod(first, self.segment_samples)
            end = min(begin + last - first, self.segment_samples)
            self._decode(song, stem, segment, begin, crop[:, first - start : first - start + end - begin])
            first += end - begin
        return crop

    def _decode(
        self, song: StoredSong, stem: str, segment: int, begin: int, out: Float32[np.ndarray, "channel sample"]
    ) -> None:
        """Fills `out` with the samples of a segment from `begin` on."""
        number = song.stems[stem].first + segment
        shard = bisect.bisect_right(self._ends[song.split], number)
        try:
            fields = unpack(self._record(song.split, shard, number))
            if (fields["song"].decode(), fields["stem"].decode(), fields["segment"]) != (song.name, stem, segment):
                raise ValueError("another segment is in its place")
            encoded = segments.Encoded(fields["encoding"].decode(), fields["scale"], fields["audio"])
            segments.decode(encoded, begin, out)
        except InputError:
            raise
        # ArrayRecord raises RuntimeErrors and IndexErrors; the others come from records that we did not write.
        except (RuntimeError, IndexError, ValueError, KeyError, AttributeError) as error:
            path = os.path.join(self.path, self._shards[song.split][shard].name)
            raise InputError(
                f"{path} cannot be read at segment {segment} of {stem} of {song.name} ({str(error).split(';')[0]}): "
                "restore it, or prepare the set again"
            ) from error

    def _record(self, split: str, shard: int, number: int) -> bytes:
        begin = self._ends[split][shard] - self._shards[split][shard].records
        return self._reader(split, shard).read([number - begin])[0]

    def _reader(self, split: str, shard: int) -> Any:
        """Returns the reader of a shard, which several threads may use at the same time."""
        from array_record.python.array_record_module import ArrayRecordReader

        if self._process != os.getpid():  # forked
            self._forget_files()
        reader = self._readers.get((split, shard))
        if reader is None:
            # Without the lock, since a download may take long; if two threads open the file, the first reader is kept.
            opened = ArrayRecordReader(
                self._local_file(self._shards[split][shard]), "readahead_buffer_size:0,max_parallelism:0"
            )
            with self._lock:
                reader = self._readers.setdefault((split, shard), opened)
                if len(self._readers) > self.most_open_files:
                    del self._readers[next(iter(self._readers))]
        return reader

    def _local_file(self, shard: _Shard) -> str:
        path = as_place(self.path) / shard.name
        return os.fspath(fetch(path, shard.bytes, self.fingerprint) if is_remote(self.path) else path)

    def _check_records(self) -> None:
        for split, songs in self._songs.items():
            for song in songs:
                for name, stem in song.stems.items():
                    count = -(-stem.samples // self.segment_samples)
                    if count != len(stem.levels) or not 0 <= stem.first <= self._ends[split][-1] - count:
                        raise ValueError(f"the records of {name} of {song.name}")

    def _check_files(self) -> None:
        directory = as_place(self.path)
        with access(directory):
            names = {path.name for path in directory.iterdir()}  # the client of a bucket caches the sizes, too
            for shard in itertools.chain.from_iterable(self._shards.values()):
                path = directory / shard.name
                if shard.name not in names:
                    raise InputError(f"{path} is missing: restore it, or prepare the set again")
                if (found := num_bytes(path)) != shard.bytes:
                    raise InputError(
                        f"{path} has {found:,} bytes instead of {shard.bytes:,}, so it was cut short or replaced: "
                        "restore it, or prepare the set again"
                    )

    def _forget_files(self) -> None:
        self._readers: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_readers", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_files()


def is_set(path: str | os.PathLike) -> bool:
    """Whether `path` is a finished set, of any format. TFDS's file counts too: other programs write an index.json.

    Raises:
      InputError: the bucket cannot be reached, or the folder cannot be read.
    """
    with access(path):
        return all((as_place(path) / name).exists() for name in (INDEX, INFO))


def _read_index(path: Place) -> dict[str, Any]:
    try:
        with access(path):
            text = (path / INDEX).read_text(encoding="utf-8")
        index = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(_why_no_set(path)) from error
    except InputError:
        raise
    except ValueError as error:  # no JSON, or no text
        raise InputError(f"{path / INDEX} is damaged ({error}): restore it, or prepare the set again") from error
    if not isinstance(index, dict):
        raise InputError(f"{path / INDEX} is damaged (it is not a JSON object): restore it, or prepare the set again")
    return index


def _why_no_set(path: Place) -> str:
    with access(path):
        if not path.is_dir():
            return f"{path} does not exist: expected the directory, or bucket and directory, of a set"
        if any(child.name.startswith((f"{DATASET}-", ".preparing")) for child in path.iterdir()):
            return f"{path} is not whole: its preparation was interrupted, run `wroformer prepare` again to finish it"
    return f"{path} is not a prepared set: it has no {INDEX}; make a set with `wroformer prepare`"


def _song(split: str, song: Mapping[str, Any]) -> StoredSong:
    stems = {name: _stem(stem) for name, stem in song["stems"].items()}
    return StoredSong(song["name"], split, song["samples"], stems, tuple(song["notes"]))


def _stem(stem: Mapping[str, Any]) -> StoredStem:
    levels = tuple(-math.inf if level is None else level for level in stem["levels"])
    return StoredStem(stem["first"], stem["samples"], levels, stem["active"])
