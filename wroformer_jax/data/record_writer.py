"""Writes sets of songs: shards of encoded segments, and the files that describe them.

A set is a directory, local or in a bucket, with

- shards: ArrayRecord files of `tf.train.Example`s. Each is a segment of a stem; those of a stem follow one another;
- features.json and dataset_info.json, from which TFDS knows how to read the shards;
- index.json, our own list of the songs and their records. It is written last: a set without it is unfinished.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax import __version__
from wroformer_jax.config.checks import check_choice, check_whole_number
from wroformer_jax.data import segments
from wroformer_jax.data.tf_example import pack
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import as_place, write_whole
from wroformer_jax.io.files import disk_errors_named, replacing
from wroformer_jax.stems import MIXTURE

DATASET = "stems"  # the name of every set, for TFDS
FORMAT = 1  # of records and index.json; sets of other formats are not read
INDEX = "index.json"
INFO = "dataset_info.json"  # TFDS's
SPLITS = ("train", "validation", "test")

LOUDEST = 2.0**64  # times full scale; higher samples are damage, and their scale would not fit into float32
_MOST_FLAC_RATE = 655_350  # Hz; the header has no room for more

Blocks = Iterable[Float32[np.ndarray, "channel _"]]
Songs = Iterable[tuple[str, Mapping[str, Blocks]]]


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a set stores audio.

    Raises:
      InputError: a field has an impossible value.
    """

    sample_rate: int = 44100  # Hz
    channels: int = 2  # or 1
    segment_seconds: int = 12  # length of a segment, which is a record
    encoding: str = "lossless"  # or "int16", "float32": see data/segments.py

    def __post_init__(self) -> None:
        for name, maximum in (("sample_rate", _MOST_FLAC_RATE), ("channels", 2), ("segment_seconds", 600)):
            check_whole_number(name, getattr(self, name), minimum=1, maximum=maximum)
        check_choice("encoding", self.encoding, segments.ENCODINGS)

    @property
    def segment_samples(self) -> int:
        return self.segment_seconds * self.sample_rate


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the file name of shard `number`, from 0, of the `count` shards of a split."""
    return f"{DATASET}-{split}.array_record-{number:05}-of-{count:05}"


def write_shard(
    path: Path, songs: Songs, storage: Storage, advance: Callable[[int], object] = lambda samples: None
) -> dict[str, Any]:
    """Writes songs into one local file, while only one segment is held in memory.

    The file gets its name when it is whole; after an error nothing of it is left.

    Args:
      path: the file to write.
      songs: (name, stems) of each song; a stem is an iterable of float32 blocks (channel, sample) of any lengths, with
        the sample rate and the channels of `storage`. Blocks are consumed one at a time, in order.
      storage: how to store them.
      advance: called with the number of samples of each written segment.

    Returns:
      The shard's part of the index: "records", "bytes" and "songs". Their records are numbered from the first one of
      this shard, and their "notes" are empty.

    Raises:
      InputError: the file cannot be written, a name is not Unicode, or samples are not finite.
      Any exception that `songs` raises.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with disk_errors_named(path), replacing(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")  # FLAC does not get smaller
        records, described = 0, []
        for song, stems in songs:
            entries = {}
            for stem, blocks in stems.items():
                entry = _write_stem(writer, (song, stem), blocks, storage, advance)
                entries[stem] = {"first": records, **entry}
                records += len(entry["levels"])
            samples = max((entry["samples"] for entry in entries.values()), default=0)
            described.append({"name": song, "samples": samples, "notes": [], "stems": entries})
        # ArrayRecord may raise an earlier error only when it is closed.
        writer.close()
        num_bytes = temporary.stat().st_size
    return {"records": records, "bytes": num_bytes, "songs": described}


def finish_set(
    directory: str | os.PathLike, storage: Storage, splits: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
) -> None:
    """Makes a set of the shards in a directory: writes the files of TFDS and, last, the index.

    Args:
      directory: local, or in a bucket (gs://).
      storage: as for `write_shard`.
      splits: for each split, the shards in order: (file name, result of `write_shard`).

    Raises:
      InputError: a file cannot be written.
    """
    directory = as_place(directory)
    joined = {split: _join(shards) for split, shards in splits.items() if shards}
    stems = {stem for content in joined.values() for song in content["songs"] for stem in song["stems"]}
    index = {
        "format": FORMAT,
        "wroformer": __version__,
        "sample_rate": storage.sample_rate,
        "channels": storage.channels,
        "segment_samples": storage.segment_samples,
        "encoding": storage.encoding,
        "stems": sorted(stems - {MIXTURE}),
        "splits": joined,
    }
    for name, text in _tfds_files(joined).items():
        write_whole(directory / name, text)
    write_whole(directory / INDEX, json.dumps(index, ensure_ascii=False))


def _write_stem(
    writer: Any, names: tuple[str, str], blocks: Blocks, storage: Storage, advance: Callable[[int], object]
) -> dict[str, Any]:
    """Writes the records of a stem. Returns its entry in the index, without "first"."""
    song, stem = map(_checked_name, names)
    samples, levels, marks = 0, [], []
    for number, audio in enumerate(_segments(blocks, storage)):
        if not np.abs(audio).max() < LOUDEST:
            raise InputError(f"{stem} of {song} has samples that are not audio (NaN, infinite or above {LOUDEST:g})")
        level = segments.level_db(audio)
        encoded = segments.encode(audio, storage.encoding, storage.sample_rate)
        record = {
            "song": song,
            "stem": stem,
            "segment": number,
            "offset": samples,
            "samples": audio.shape[-1],
            "sample_rate": storage.sample_rate,
            "encoding": encoded.kind,
            "scale": encoded.scale,
            "level": level,
            "active": segments.active_marks(audio, storage.sample_rate),
            "audio": encoded.data,
        }
        writer.write(pack(record))
        samples += audio.shape[-1]
        levels.append(round(level, 2) if math.isfinite(level) else None)
        marks.append(record["active"])
        advance(audio.shape[-1])
    return {"samples": samples, "levels": levels, "active": "".join(marks)}


def _segments(blocks: Blocks, storage: Storage) -> Iterator[Float32[np.ndarray, "channel sample"]]:
    """Cuts a stream of blocks into segments, all in the same array; the last may be shorter."""
    segment = np.empty((storage.channels, storage.segment_samples), np.float32)
    filled = 0
    for block in blocks:
        taken = 0
        while taken < block.shape[-1]:
            part = block[:, taken : taken + segment.shape[-1] - filled]
            segment[:, filled : filled + part.shape[-1]] = part
            filled += part.shape[-1]
            taken += part.shape[-1]
            if filled == segment.shape[-1]:
                yield segment
                filled = 0
    if filled:
        yield segment[:, :filled]


def _checked_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name!r} is not Unicode: rename it") from error
    return name


def _join(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns the index of a split, with its records numbered through all shards."""
    files, songs, records = [], [], 0
    for name, part in shards:
        files.append({"name": name, "bytes": part["bytes"], "records": part["records"]})
        for song in part["songs"]:
            stems = {stem: {**entry, "first": records + entry["first"]} for stem, entry in song["stems"].items()}
            songs.append({**song, "stems": stems})
        records += part["records"]
    return {"shards": files, "songs": songs}


def _tfds_files(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the names and texts of the files from which TFDS knows a set."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.splits import SplitDict

    text = tfds.features.Text()
    features: dict[str, Any] = dict.fromkeys(("song", "stem", "encoding", "active", "audio"), text)
    features |= dict.fromkeys(("segment", "offset", "samples", "sample_rate"), np.int64)
    features |= dict.fromkeys(("scale", "level"), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        identity = DatasetIdentity(
            name=DATASET, version=tfds.core.Version(f"{FORMAT}.0.0"), data_dir=folder, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=tfds.features.FeaturesDict(features),
            description="Stems of songs, a segment an example, for the training of music source separation.",
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        names = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(folder), dataset_name=DATASET, filetype_suffix="array_record"
        )
        described = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["records"] for shard in content["shards"]],
                num_bytes=sum(shard["bytes"] for shard in content["shards"]),
                filename_template=names.replace(split=split),
            )
            for split, content in splits.items()
        ]
        info.set_splits(SplitDict(described))
        info.write_to_directory(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
