"""The estimates to score: separated here by a model, or written earlier by another tool."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.evaluation.songs import ReferenceSong, Shape, in_seconds
from wroformer_jax.io.audio import inspect, read_whole
from wroformer_jax.io.audio_writer import ENCODINGS, SongWriter
from wroformer_jax.io.folders import audio_files, by_stem, files_state
from wroformer_jax.separation.progress import with_progress
from wroformer_jax.separation.stream import separate_blocks, stem_names
from wroformer_jax.stems import INSTRUMENTAL, VOCALS


@dataclasses.dataclass(frozen=True)
class Separator:
    """Separates songs with a model."""

    model: Any
    params: Any
    chunk_seconds: float | None  # of audio that the model gets at once; None for whole songs
    overlap: int  # chunks over each sample
    batch_size: int  # chunks per call of the model
    save_stems: Path | None = None  # folder that keeps the stems; None deletes them after scoring

    @contextlib.contextmanager
    def estimates(self, song: ReferenceSong, stems: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Separates a song and yields the paths of its stems, 32-bit float WAV, by stem."""
        with contextlib.ExitStack() as stack:
            if self.save_stems is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wroformer-")))
            else:
                folder = self.save_stems / song.name
            paths = _wavs(folder, stems)
            self._separate(song, paths)
            yield paths

    def state(self, song: ReferenceSong) -> str:
        """Returns a short text that changes with the audio that a song's scores depend on."""
        return song.state()

    def has_kept(self, song: ReferenceSong, stems: Sequence[str]) -> bool:
        """Whether all stems that are to be kept exist."""
        return self.save_stems is None or all(map(os.path.exists, _wavs(self.save_stems / song.name, stems).values()))

    def _separate(self, song: ReferenceSong, paths: dict[str, Path]) -> None:
        shape = song.shape
        blocks = separate_blocks(
            self.model,
            self.params,
            song.mixture(),
            sample_rate=shape.sample_rate,
            chunk_seconds=self.chunk_seconds,
            overlap=self.overlap,
            batch_size=self.batch_size,
        )
        with SongWriter(
            paths,
            sample_rate=shape.sample_rate,
            channels=shape.channels,
            samples=shape.samples,
            encoding=ENCODINGS["wav32f"],
        ) as writer:
            for block in with_progress(
                blocks, samples=shape.samples, sample_rate=shape.sample_rate, label=f"separate {song.name}"
            ):
                writer.write({stem: block[stem] for stem in paths})


@dataclasses.dataclass(frozen=True)
class FoundEstimates:
    """Finds the estimates of another tool: FOLDER/SONG/STEM.wav or FOLDER/test/SONG/STEM.wav."""

    folder: Path

    @contextlib.contextmanager
    def estimates(self, song: ReferenceSong, stems: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Yields the paths of a song's estimates by stem."""
        files = self._files(song)
        for stem in stems:
            if stem.lower() not in files:
                raise InputError(f"{self.folder / song.name} has no estimate of {stem}: expected {stem}.wav")
        yield {stem: files[stem.lower()] for stem in stems}

    def state(self, song: ReferenceSong) -> str:
        """Returns a short text that changes with the audio that a song's scores depend on."""
        return f"{song.state()} {files_state(self._files(song).values())}"

    def has_kept(self, song: ReferenceSong, stems: Sequence[str]) -> bool:
        """True: the estimates are kept where they are."""
        return True

    def stems(self, songs: Sequence[ReferenceSong]) -> list[str]:
        """Returns the stems of which at least one song has an estimate."""
        names: dict[str, None] = {}
        for song in songs:
            with contextlib.suppress(
                InputError
            ):  # concerns this song only; `evaluate` reports it when it reaches the song
                names.update(dict.fromkeys(self._files(song)))
        return list(names)

    def _files(self, song: ReferenceSong) -> dict[str, Path]:
        # Names of songs have composed letters (NFC), but macOS creates folders with decomposed ones.
        names = dict.fromkeys([song.name, unicodedata.normalize("NFD", song.name)])
        for name, above in itertools.product(names, ("", "test")):
            folder = Path(self.folder, above, name)
            if os.path.isdir(folder):
                return by_stem(folder / path for path in audio_files(folder) if len(path.parts) == 1)
        raise InputError(
            f"{self.folder / song.name} is missing: expected the estimates of this song, one file for each stem"
        )


def read_estimate(path: Path, shape: Shape) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Yields an estimate second by second, in the shape of its song."""
    return in_seconds(read_whole(path), shape)


def check_estimate(path: Path, shape: Shape) -> str | None:
    """Compares the header of an estimate with its song.

    Returns:
      A note for the report if the estimate will be padded or cut to the song's length, else None.

    Raises:
      InputError: the file cannot be read, or has another sample rate or more channels than the song.
    """
    info = inspect(path)
    if info.sample_rate != shape.sample_rate:
        raise InputError(f"{path} has {info.sample_rate} Hz and its song {shape.sample_rate} Hz: they must be equal")
    if info.channels > shape.channels:
        raise InputError(f"{path} has {info.channels} channels and its song {shape.channels}: mix it down first")
    missing = shape.samples - info.samples
    if missing == 0:
        return None
    change = f"padded by {missing} samples" if missing > 0 else f"cut by {-missing} samples"
    return f"the estimate {path.name} {change} at the end"


def offered_stems(config: ModelConfig) -> tuple[str, ...]:
    """Returns the stems on which a model can be scored.

    `separate` also writes the rest of a single-stem model, the mixture minus the stem. It is scored only where that
    is the vocals or the instrumental: the rest of a drums model is neither, though `separate` names it instrumental.
    """
    names = stem_names(config)
    return names if {name.lower() for name in names} >= {VOCALS, INSTRUMENTAL} else config.stems


def doubtful_rest(stems: Sequence[str], songs: Sequence[ReferenceSong]) -> str | None:
    """Returns a warning if the estimates are vocals and other, but songs have more stems; else None.

    In public recipes, the "other" of such a model is everything but the vocals, which songs call instrumental.
    """
    names = {stem.lower() for stem in stems}
    more = sorted({stem for song in songs for stem in song.stems if stem.lower() not in names})
    if names != {VOCALS, "other"} or not more:
        return None
    return (
        f"the songs also have {', '.join(more)}, but the estimates are only vocals and other: if this other is "
        "everything but the vocals, its scores are wrong; --stems vocals leaves them out"
    )


def fingerprint(config: ModelConfig, params: Any) -> str:
    """Returns a hash of a model's settings and weights, which does not depend on the file they came from."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _wavs(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    return {stem: folder / f"{stem}.wav" for stem in stems}
