"""Estimates to score: those that a model makes, and those that another tool has made."""

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
from wroformer_jax.evaluation.songs import Shape, Song, in_seconds
from wroformer_jax.io.audio import inspect, read_whole
from wroformer_jax.io.audio_writer import ENCODINGS, SongWriter
from wroformer_jax.io.folders import audio_files, by_stem, files_state
from wroformer_jax.separation.progress import with_progress
from wroformer_jax.separation.stream import separate_blocks, stem_names
from wroformer_jax.stems import INSTRUMENTAL, VOCALS


@dataclasses.dataclass(frozen=True)
class Separator:
    """A model, how to separate with it, and where to leave the stems."""

    model: Any
    params: Any
    chunk_seconds: float | None
    overlap: int
    batch_size: int
    save_stems: Path | None = None  # by default they are deleted when they are scored

    @contextlib.contextmanager
    def estimates(self, song: Song, stems: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Separates a song; yields the files of its stems, 32-bit float wav."""
        with contextlib.ExitStack() as stack:
            if self.save_stems is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wroformer-")))
            else:
                folder = self.save_stems / song.name
            paths = _wavs(folder, stems)
            self._separate(song, paths)
            yield paths

    def state(self, song: Song) -> str:
        """Changes with whatever the scores of a song depend on, apart from the settings."""
        return song.state()

    def has_left(self, song: Song, stems: Sequence[str]) -> bool:
        """Whether the stems are where they are to be left."""
        return self.save_stems is None or all(map(os.path.exists, _wavs(self.save_stems / song.name, stems).values()))

    def _separate(self, song: Song, paths: dict[str, Path]) -> None:
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
    """Estimates that another tool made: FOLDER/SONG/STEM.wav, or FOLDER/test/SONG/STEM.wav."""

    folder: Path

    @contextlib.contextmanager
    def estimates(self, song: Song, stems: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Yields the files of a song's stems."""
        there = self._files(song)
        for stem in stems:
            if stem.lower() not in there:
                raise InputError(f"{self.folder / song.name} has no estimate of {stem}: expected {stem}.wav")
        yield {stem: there[stem.lower()] for stem in stems}

    def state(self, song: Song) -> str:
        """Changes with whatever the scores of a song depend on, apart from the settings."""
        return f"{song.state()} {files_state(self._files(song).values())}"

    def has_left(self, song: Song, stems: Sequence[str]) -> bool:
        """Nothing is to be left anywhere."""
        return True

    def stems(self, songs: Sequence[Song]) -> list[str]:
        """All stems that there are estimates of for some song."""
        names: dict[str, None] = {}
        for song in songs:
            with contextlib.suppress(InputError):  # of this song alone, and reported when it is its turn
                names.update(dict.fromkeys(self._files(song)))
        return list(names)

    def _files(self, song: Song) -> dict[str, Path]:
        # Songs are called by composed letters (NFC), whereas a Mac makes folders of decomposed ones.
        names = dict.fromkeys([song.name, unicodedata.normalize("NFD", song.name)])
        for name, above in itertools.product(names, ("", "test")):
            folder = Path(self.folder, above, name)
            if os.path.isdir(folder):
                return by_stem(folder / path for path in audio_files(folder) if len(path.parts) == 1)
        raise InputError(
            f"{self.folder / song.name} is missing: expected the estimates of this song, a file for each stem"
        )


def read_estimate(path: Path, shape: Shape) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """An estimate as a stream of seconds, in the shape of its song."""
    return in_seconds(read_whole(path), shape)


def check_estimate(path: Path, shape: Shape) -> str | None:
    """Holds an estimate's header against its song.

    Returns:
      What has to be done to its length, to be reported, or None.

    Raises:
      InputError: it cannot be used, or has another sample rate or more channels than the song.
    """
    info = inspect(path)
    if info.sample_rate != shape.sample_rate:
        raise InputError(f"{path} has {info.sample_rate} Hz and its song {shape.sample_rate} Hz: they must be equal")
    if info.channels > shape.channels:
        raise InputError(f"{path} has {info.channels} channels and its song {shape.channels}: mix it down first")
    missing = shape.samples - info.samples
    if missing == 0:
        return None
    what = f"padded by {missing} samples" if missing > 0 else f"cut by {-missing} samples"
    return f"the estimate {path.name} {what} at the end"


def offered_stems(config: ModelConfig) -> tuple[str, ...]:
    """The stems that a model can be scored on.

    The rest of a model of one stem counts only where it is the vocals or all but the vocals: the rest of a
    drums model is no stem of its own, though `separate` calls it instrumental.
    """
    names = stem_names(config)
    return names if {name.lower() for name in names} >= {VOCALS, INSTRUMENTAL} else config.stems


def doubtful_rest(stems: Sequence[str], songs: Sequence[Song]) -> str | None:
    """A warning for models of the stems vocals and other, if songs have other stems, too.

    In public recipes the "other" of such models is all but the vocals, which songs call instrumental.
    """
    names = {stem.lower() for stem in stems}
    more = sorted({stem for song in songs for stem in song.stems if stem.lower() not in names})
    if names != {VOCALS, "other"} or not more:
        return None
    return (
        f"the songs have {', '.join(more)}, too, and the estimates vocals and other alone: if that other is all but "
        "the vocals, its scores are wrong, and --stems vocals leaves them out"
    )


def fingerprint(config: ModelConfig, params: Any) -> str:
    """A short text that is the same for the same settings and weights, wherever they were loaded from."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _wavs(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    return {stem: folder / f"{stem}.wav" for stem in stems}
