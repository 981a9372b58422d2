"""Scores of separated songs, one song at a time: memory is that of one song, disk that of its estimates.

One song's way: its mixture is separated as a stream into float files, or the files of another tool are taken; then
each stem's reference and estimate are read and compared (metrics.py), and what was found is kept (results.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wroformer_jax.audio import ENCODINGS, SongWriter
from wroformer_jax.config import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.metrics import bleedless_fullness, csdr, leakage_db, museval_csdr, si_sdr, usdr
from wroformer_jax.results import Results, Scores
from wroformer_jax.separation import separate_blocks, stem_names, with_progress
from wroformer_jax.songs import (
    INSTRUMENTAL,
    VOCALS,
    Shape,
    Song,
    check_estimate,
    files_state,
    find_estimates,
    mixture_blocks,
    read_stem,
    read_sum,
    shape_of,
)


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
    def estimates(self, song: Song, shape: Shape, stems: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Separates a song; yields the files of its stems, 32-bit float wav."""
        with contextlib.ExitStack() as stack:
            if self.save_stems is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wroformer-")))
            else:
                folder = self.save_stems / song.name
            yield self._separate(song, shape, {stem: folder / f"{stem}.wav" for stem in stems})

    def files(self, song: Song) -> list[Path]:
        """What the scores of a song depend on, apart from the settings."""
        return song.files

    def _separate(self, song: Song, shape: Shape, paths: dict[str, Path]) -> dict[str, Path]:
        blocks = separate_blocks(
            self.model,
            self.params,
            mixture_blocks(song, shape),
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
        return paths


@dataclasses.dataclass(frozen=True)
class FoundEstimates:
    """Estimates that another tool made: FOLDER/SONG/STEM.wav."""

    folder: Path

    @contextlib.contextmanager
    def estimates(self, song: Song, shape: Shape, stems: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Yields the files of a song's stems."""
        yield self._files(song, stems)

    def files(self, song: Song) -> list[Path]:
        """What the scores of a song depend on, apart from the settings."""
        return [*song.files, *find_estimates(self.folder, song).values()]

    def stems(self, songs: Sequence[Song]) -> list[str]:
        """All stems that there are estimates of for some song."""
        names: dict[str, None] = {}
        for song in songs:
            with contextlib.suppress(InputError):  # of this song alone, and reported when it is its turn
                names.update(dict.fromkeys(find_estimates(self.folder, song)))
        return list(names)

    def _files(self, song: Song, stems: Sequence[str]) -> dict[str, Path]:
        there = find_estimates(self.folder, song)
        for stem in stems:
            if stem.lower() not in there:
                raise InputError(f"{self.folder / song.name} has no estimate of {stem}: expected {stem}.wav")
        return {stem: there[stem.lower()] for stem in stems}


def choose_stems(songs: Sequence[Song], offered: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The stems to score: those wanted, or all that are offered and that some song has.

    Raises:
      InputError: a wanted stem is not offered, or no song has it; or no song has any of those offered.
    """
    for stem in wanted or ():
        if stem not in offered:
            raise InputError(f"--stems {stem}: there are estimates of {', '.join(offered) or 'nothing'}")
    in_songs = [stem for stem in wanted or offered if any(song.has(stem) for song in songs)]
    missing = [stem for stem in wanted or offered if stem not in in_songs]
    if not in_songs or (wanted and missing):
        there = sorted({stem for song in songs for stem in song.stems})
        raise InputError(f"no song has the stem {' or '.join(missing) or '-'}: the songs have {', '.join(there)}")
    return tuple(in_songs)


def offered_stems(config: ModelConfig) -> tuple[str, ...]:
    """The stems that a model can be scored on.

    The rest of a model of one stem counts only where it is the vocals or all but the vocals: the rest of a
    drums model is no stem of its own, though `separate` calls it instrumental.
    """
    names = stem_names(config)
    return names if {name.lower() for name in names} >= {VOCALS, INSTRUMENTAL} else config.stems


def fingerprint(config: ModelConfig, params: Any) -> str:
    """A short text that is the same for the same settings and weights, wherever they were loaded from."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def score_song(song: Song, shape: Shape, estimates: dict[str, Path], *, use_museval: bool) -> Scores:
    """All metrics of each stem of a song; NaN for those that are undefined.

    Args:
      song: the references.
      shape: what all audio is brought to.
      estimates: the file of each stem to score.
      use_museval: lets the museval package compute cSDR.

    Raises:
      InputError: a file cannot be decoded to its end.
    """
    mixture = read_sum(song.mixture_parts, shape)
    references = {stem: read_stem(song, stem, shape) for stem in estimates}
    estimated = {stem: read_sum([path], shape) for stem, path in estimates.items()}
    framewise = (museval_csdr if use_museval else csdr)(
        list(references.values()), list(estimated.values()), sample_rate=shape.sample_rate
    )
    scores: Scores = {}
    for (stem, reference), frames in zip(references.items(), framewise, strict=True):
        estimate = estimated[stem]
        bleedless, fullness = bleedless_fullness(reference, estimate, sample_rate=shape.sample_rate)
        scores[stem] = {
            "usdr": usdr(reference, estimate),
            "si_sdr": si_sdr(reference, estimate),
            "csdr": frames,
            "bleedless": bleedless,
            "fullness": fullness,
            "leakage": leakage_db(reference, estimate, mixture, sample_rate=shape.sample_rate),
        }
    return scores


def evaluate(
    songs: Sequence[Song],
    stems: Sequence[str],
    source: Separator | FoundEstimates,
    results: Results,
    *,
    use_museval: bool = False,
    say: Callable[[str], None],
    report: Callable[[InputError], None],
) -> int:
    """Scores the songs that `results` does not hold yet, one at a time, and keeps each as it is done.

    Args:
      songs: of `find_songs`.
      stems: to score.
      source: of the estimates.
      results: of earlier runs; each song is added to them.
      use_museval: lets the museval package compute cSDR.
      say: takes the lines of progress: a song a line, and a line for what was unusual about it.
      report: takes the error of each song that cannot be scored.

    Returns:
      How many songs could not be scored.

    Raises:
      InputError: the results cannot be written.
    """
    begun, done, failed = time.perf_counter(), 0, 0
    for index, song in enumerate(songs):
        try:
            state = files_state(source.files(song))
            if results.holds(song.name, state):
                continue
            shape = shape_of(song)
            with source.estimates(song, shape, stems) as paths:
                notes = [*shape.notes]
                notes += [note for path in paths.values() if (note := check_estimate(path, shape))]
                scores = score_song(song, shape, paths, use_museval=use_museval)
        except InputError as error:
            report(_about(song, error))
            results.drop(song.name)
            failed += 1
            continue
        results.add(song.name, scores, seconds=shape.seconds, state=state, notes=notes)
        for note in notes:
            say(f"{song.name}: {note}")
        done += 1
        seconds_left = (time.perf_counter() - begun) / done * (len(songs) - index - 1)
        say(_line(song, index, len(songs), scores, seconds_left))
    return failed


def _line(song: Song, index: int, count: int, scores: Scores, seconds_left: float) -> str:
    """'[3/50] Artist - Title: vocals 8.12 dB, instrumental 14.90 dB uSDR (12 min left)'."""
    values = ", ".join(
        f"{stem} {'undefined' if np.isnan(of_stem['usdr']) else format(of_stem['usdr'], '.2f') + ' dB'}"
        for stem, of_stem in scores.items()
    )
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 60 else f"{seconds_left:.0f} s"
    return f"[{index + 1}/{count}] {song.name}: {values} uSDR" + (f" ({left} left)" if index + 1 < count else "")


def _about(song: Song, error: InputError) -> InputError:
    """The error with the song's name in front, unless it says which of the song's files is meant."""
    if os.fspath(song.folder) in str(error):
        return error
    named = InputError(f"{song.name}: {error}")
    named.__cause__ = error
    return named
