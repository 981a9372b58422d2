"""Preparing a set: stems of any origin, stored so that any crop of any of them can be read at once.

The songs are planned into units, each of which becomes a shard (units.py); worker processes write them (parallel.py)
to a hidden folder (staging.py), where they outlive a kill; and when all are there, they are made a set.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from wroformer_jax.data.prepare import workers as parallel
from wroformer_jax.data.prepare.find_stems import SongFiles, counted, find
from wroformer_jax.data.prepare.progress import Progress
from wroformer_jax.data.prepare.shards import FileSong, Song, SourceFile, SyntheticSong, Unit, Written, plan, write_unit
from wroformer_jax.data.prepare.staging import Staging
from wroformer_jax.data.prepare.summary import Prepared
from wroformer_jax.data.record_writer import SPLITS, Storage
from wroformer_jax.data.synthetic.song import MIN_SAMPLE_RATE, TRAIN, VALIDATION
from wroformer_jax.errors import InputError
from wroformer_jax.io.files import check_space, disk_errors_named

_ADVICE = "mend them, or leave these songs out with --skip-bad"
_INSPECTORS = 16  # threads: they wait for the disk, not for each other

Say = Callable[[str], object]


class BadFiles(InputError):
    """Files that cannot be used, with the reason for each in `reasons`."""

    def __init__(self, reasons: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    layout: str | None = None,
    sample_rate: int = 44100,
    segment_seconds: int = 12,
    encoding: str = "lossless",
    workers: int = 1,
    skip_bad: bool = False,
    overwrite: bool = False,
    say: Say = _to_stderr,
) -> Prepared:
    """Writes a set of the stems in a folder or a table of files; see docs/data.md for layouts and encodings.

    A call that was interrupted goes on where it was when it is made again.

    Args:
      source: a folder or a .csv file.
      directory: where the set is to be, local or gs://.
      layout: one of stem_sources.LAYOUTS, or None to find out.
      sample_rate: Hz; other files are resampled.
      segment_seconds: of a record.
      encoding: lossless, int16 or float32.
      workers: processes that write. More than 1 only in programs whose main module can be imported
        (`if __name__ == "__main__"`).
      skip_bad: leaves songs out that have a file that cannot be used.
      overwrite: replaces a set that is there, once the new one is whole.
      say: told what is going on, a line at a time.

    Returns:
      What was stored and what was left out.

    Raises:
      BadFiles: some files cannot be used, and `skip_bad` is false. Nothing is written if their headers tell.
      InputError: nothing can be found, the directory is in use or has something else in it, or the disk is full.
    """
    storage = Storage(sample_rate, 2, segment_seconds, encoding)
    staging = Staging(directory)
    staging.refuse(overwrite=overwrite)
    say(f"looking for songs in {source}")
    found = find(source, layout)
    for warning in found.warnings:
        say(f"wroformer: warning: {warning}")
    files = sum(len(song.stems) for song in found.songs)
    say(f"inspecting {counted(files, 'file')} of {counted(len(found.songs), 'song')} (layout {found.layout!r})")
    splits, bad = _inspected(found.songs)
    if bad and not skip_bad:
        raise _bad_files(bad, f"; nothing was written to {directory}; {_ADVICE}")
    if not any(splits.values()):
        raise _bad_files(bad, ", and no song is left: mend them")
    return _write(splits, storage, staging, bad, workers=workers, skip_bad=skip_bad, overwrite=overwrite, say=say)


def prepare_synthetic(
    directory: str | os.PathLike,
    *,
    train_songs: int,
    test_songs: int,
    seconds: float,
    sample_rate: int = 44100,
    seed: int = 0,
    segment_seconds: int = 12,
    encoding: str = "lossless",
    workers: int = 1,
    overwrite: bool = False,
    say: Say = _to_stderr,
) -> Prepared:
    """As `prepare`, of songs that are synthesised: (seed, 0, index) of data/synthetic.py to train on, (seed, 1, index)
    to test on.

    Args:
      directory: where the set is to be, local or gs://.
      train_songs: how many.
      test_songs: how many.
      seconds: length of each.
      sample_rate: Hz, at least synthetic.MIN_SAMPLE_RATE.
      seed: of the songs, 0 or more.
      segment_seconds, encoding, workers, overwrite, say: as for `prepare`.

    Raises:
      InputError: a number that makes no songs; and as `prepare`.
    """
    storage = Storage(sample_rate, 2, segment_seconds, encoding)
    if sample_rate < MIN_SAMPLE_RATE:
        raise InputError(f"sample_rate is {sample_rate}, expected at least {MIN_SAMPLE_RATE} Hz for synthetic songs")
    if not (math.isfinite(seconds) and round(seconds * sample_rate) > 0):
        raise InputError(f"seconds is {seconds}, expected a length above zero")
    if min(train_songs, test_songs, seed) < 0 or train_songs + test_songs < 1:
        raise InputError(
            f"train_songs is {train_songs}, test_songs {test_songs} and seed {seed}: expected at least one song, "
            "and no number below zero"
        )
    staging = Staging(directory)
    staging.refuse(overwrite=overwrite)
    splits = {
        split: [
            SyntheticSong(f"synthetic-{seed}-{split}-{index:05}", (seed, number, index), float(seconds))
            for index in range(count)
        ]
        for split, number, count in (("train", TRAIN, train_songs), ("test", VALIDATION, test_songs))
    }
    return _write(splits, storage, staging, [], workers=workers, skip_bad=False, overwrite=overwrite, say=say)


def _inspected(songs: Iterable[SongFiles]) -> tuple[dict[str, list[FileSong]], list[tuple[str, str]]]:
    """The usable songs of each split, and (song, reason) of each file that is not."""
    songs = list(songs)
    splits: dict[str, list[FileSong]] = {split: [] for split in SPLITS}
    bad = []
    with concurrent.futures.ThreadPoolExecutor(_INSPECTORS) as threads:
        for song, looked_at in zip(songs, threads.map(_inspect_song, songs), strict=True):
            errors = [error for error in looked_at.values() if isinstance(error, InputError)]
            bad += [(song.name, str(error)) for error in errors]
            if not errors:
                splits[song.split].append(FileSong(song, looked_at))
    return splits, bad


def _inspect_song(song: SongFiles) -> dict[str, SourceFile | InputError]:
    return {stem: _inspect_file(path) for stem, path in song.stems.items()}


def _inspect_file(path: Path) -> SourceFile | InputError:
    try:
        return SourceFile.inspect(path)
    except InputError as error:
        return error


def _bad_files(bad: Sequence[tuple[str, str]], what_now: str) -> BadFiles:
    songs = len({song for song, _ in bad})
    return BadFiles(
        [reason for _, reason in bad],
        f"{counted(len(bad), 'file')} of {counted(songs, 'song')} cannot be used{what_now}",
    )


def _write(
    splits: Mapping[str, Sequence[Song]],
    storage: Storage,
    staging: Staging,
    bad: Sequence[tuple[str, str]],
    *,
    workers: int,
    skip_bad: bool,
    overwrite: bool,
    say: Say,
) -> Prepared:
    """Writes what is not written yet, and makes it all a set."""
    units = plan(splits, storage)
    with staging.claimed(overwrite=overwrite):
        done = {key: written for key, written in staging.finished(units).items() if skip_bad or not written.bad}
        todo = [unit for unit in units if unit.key not in done]
        if done:
            say(f"{staging.directory}: goes on with {len(done)} of {len(units)} shards written earlier")
        _check_space(todo, storage, staging)
        failed: dict[str, Written] = {}

        def finish(unit: Unit, written: Written) -> None:
            if written.bad and not skip_bad:
                failed[unit.key] = written
            else:
                staging.keep(unit.key, written)
                done[unit.key] = written

        if todo:
            task = functools.partial(write_unit, storage=storage, folder=os.fspath(staging.folder), skip_bad=skip_bad)
            with Progress(sum(unit.seconds for unit in todo), say) as progress:
                parallel.run(task, todo, workers=workers, finish=finish, advance=progress.advance)
        if failed:
            reasons = [reason for unit in todo if unit.key in failed for reason in failed[unit.key].bad]
            kept = f"{len(done)} of {len(units)} shards"
            raise _bad_files(reasons, f"; the rest is written ({kept}) and will be kept; {_ADVICE}")
        bad = [*bad, *(reason for unit in units for reason in done[unit.key].bad)]
        parts = {
            split: [
                (unit.key, done[unit.key].part)
                for unit in units
                if unit.split == split and done[unit.key].part is not None
            ]
            for split in splits
        }
        if not any(parts.values()):
            raise _bad_files(bad, ", and no song is left: mend them")
        staging.publish(storage, parts)
    return Prepared(
        os.fspath(staging.directory),
        storage,
        {split: tuple(part for _, part in shards) for split, shards in parts.items() if shards},
        tuple(bad),
    )


def _check_space(units: Sequence[Unit], storage: Storage, staging: Staging) -> None:
    """Finds a full disk before hours of work, where it is known how much will be written."""
    width = {"int16": 2, "float32": 4}.get(storage.encoding)
    if width and staging.is_local:
        seconds = sum(unit.seconds for unit in units)
        with disk_errors_named(staging.directory):
            check_space(Path(staging.folder), round(seconds * storage.sample_rate) * storage.channels * width)
