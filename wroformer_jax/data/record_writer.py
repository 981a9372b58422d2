"""Sets of stored songs are written here: shards of encoded segments, then what describes them all.

A set is a directory, local or in a bucket, of

- shards: ArrayRecord files of `tf.train.Example`s, a segment of a stem each, the segments of a stem in a row;
- features.json and dataset_info.json, by which TFDS reads them;
- index.json, ours: the songs and where they lie. Written last: a set without it is not whole.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax.data import segments
from wroformer_jax.data.tf_example import pack
from wroformer_jax.errors import InputError
from wroformer_jax.io.buckets import write_whole
from wroformer_jax.io.files import disk_errors_named, replacing
from wroformer_jax.stems import MIXTURE

DATASET = "stems"  # the name of every set, for TFDS
FORMAT = 1  # of records and index.json; sets of other formats are not read
INDEX = "index.json"
INFO = "dataset_info.json"  # TFDS's
SPLITS = ("train", "validation", "test")

LOUDEST = 2.0**64  # full scales; more comes from damage, and float32 is to hold all scales
_FLAC_RATES = 655_350  # Hz; what its header has room for

Blocks = Iterable[Float32[np.ndarray, "channel _"]]
Songs = Iterable[tuple[str, Mapping[str, Blocks]]]


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a set keeps audio.

    Raises:
      InputError: a field has an impossible value.
    """

    sample_rate: int = 44100  # Hz
    channels: int = 2  # or 1
    segment_seconds: int = 12  # length of the segments that are read as a whole
    encoding: str = "lossless"  # or "int16", "float32": see data/segments.py

    def __post_init__(self) -> None:
        for name, most in (("sample_rate", _FLAC_RATES), ("channels", 2), ("segment_seconds", 600)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name} is {value!r}, expected a whole number from 1 to {most}")
        if self.encoding not in segments.ENCODINGS:
            raise InputError(f"encoding is {self.encoding!r}, expected one of {', '.join(segments.ENCODINGS)}")

    @property
    def segment_samples(self) -> int:
        return self.segment_seconds * self.sample_rate


def shard_name(split: str, number: int, count: int) -> str:
    """The name of shard `number`, from 0, of the `count` shards of a split."""
    return f"{DATASET}-{split}.array_record-{number:05}-of-{count:05}"


def write_shard(
    path: Path, songs: Songs, storage: Storage, advance: Callable[[int], object] = lambda samples: None
) -> dict[str, Any]:
    """Writes songs into one local file, holding no more than a segment of them in memory.

    The file appears under its name when it is whole; after an error nothing of it is left.

    Args:
      path: the file to write.
      songs: for each its name and, for each of its stems, float32 blocks (channel, sample) of any lengths, at the
        rate and with the channels of `storage`. Taken one block after the other.
      storage: how to keep them.
      advance: is told the number of samples of each segment that has been written.

    Returns:
      The shard's part of the index: "records", "bytes" and "songs", whose records are counted from the first one of
      this shard and whose "notes" are empty.

    Raises:
      InputError: the file cannot be written; a name is not Unicode; samples are not finite. And whatever `songs` raise.
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
        # Only now all that went wrong on the way is sure to be raised.
        writer.close()
        num_bytes = temporary.stat().st_size
    return {"records": records, "bytes": num_bytes, "songs": described}


def finish_set(
    directory: str | os.PathLike, storage: Storage, splits: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
) -> None:
    """Makes a set of the shards in a directory: writes what TFDS needs and, last, the index.

    Args:
      directory: local, or in a bucket (gs://).
      storage: as for `write_shard`.
      splits: for each split its shards, in their order: the name of the file and what `write_shard` returned.

    Raises:
      InputError: a file cannot be written.
    """
    from etils import epath

    directory = epath.Path(directory)
    joined = {split: _join(shards) for split, shards in splits.items() if shards}
    stems = {stem for content in joined.values() for song in content["songs"] for stem in song["stems"]}
    index = {
        "format": FORMAT,
        "wroformer": importlib.metadata.version("wroformer-jax"),
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
    """Appends the records of a stem, and gives what the index says of it, but for "first"."""
    song, stem = map(_checked_name, names)
    samples, levels, marks = 0, [], []
    for number, audio in enumerate(_segments(blocks, storage)):
        if not np.abs(audio).max() < LOUDEST:
            raise InputError(f"{stem} of {song} has samples that are no audio (NaN, infinite or above {LOUDEST:g})")
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
            "level": segments.level_db(audio),
            "active": segments.active_marks(audio, storage.sample_rate),
            "audio": encoded.data,
        }
        writer.write(pack(record))
        samples += audio.shape[-1]
        levels.append(round(record["level"], 2) if math.isfinite(record["level"]) else None)
        marks.append(record["active"])
        advance(audio.shape[-1])
    return {"samples": samples, "levels": levels, "active": "".join(marks)}


def _segments(blocks: Blocks, storage: Storage) -> Iterator[Float32[np.ndarray, "channel sample"]]:
    """Cuts a stream into segments, the last one as long as it comes; each is overwritten by the next."""
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
    """The index of a split, whose records are counted through its shards."""
    files, songs, records = [], [], 0
    for name, part in shards:
        files.append({"name": name, "bytes": part["bytes"], "records": part["records"]})
        for song in part["songs"]:
            stems = {stem: {**entry, "first": records + entry["first"]} for stem, entry in song["stems"].items()}
            songs.append({**song, "stems": stems})
        records += part["records"]
    return {"shards": files, "songs": songs}


def _tfds_files(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The files by which TFDS knows a set: name and text of each."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    features = dict.fromkeys(("song", "stem", "encoding", "active", "audio"), text)
    features |= dict.fromkeys(("segment", "offset", "samples", "sample_rate"), np.int64)
    features |= dict.fromkeys(("scale", "level"), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=DATASET, version=tfds.core.Version(f"{FORMAT}.0.0"), data_dir=folder, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=tfds.features.FeaturesDict(features),
            description="Stems of songs, a segment an example, for the training of music source separation.",
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        names = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=DATASET, filetype_suffix="array_record")
        described = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["records"] for shard in content["shards"]],
                num_bytes=sum(shard["bytes"] for shard in content["shards"]),
                filename_template=names.replace(split=split),
            )
            for split, content in splits.items()
        ]
        info.set_splits(tfds.core.splits.SplitDict(described))
        info.write_to_directory(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
