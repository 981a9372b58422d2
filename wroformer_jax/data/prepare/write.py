"""Prepares a set: writes stems from files or from the synthesiser as records, from which any crop can be read.

`plan` (shards.py) groups the songs into units, each of which becomes a shard. Worker processes (workers.py) write the
shards to a hidden folder (staging.py), where they survive if the run is killed. When all are finished, they become the
set.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from wroformer_jax.data.prepare.find_stems import FoundSong, counted, find
from wroformer_jax.data.prepare.shards import (
    InspectedSong,
    SourceFile,
    SourceSong,
    SyntheticSong,
    Unit,
    Written,
    plan,
    write_unit,
)
from wroformer_jax.data.prepare.staging import Staging
from wroformer_jax.data.prepare.summary import Prepared
from wroformer_jax.data.prepare.workers import run_tasks
from wroformer_jax.data.record_writer import SPLITS, Storage
from wroformer_jax.data.synthetic.song import MIN_SAMPLE_RATE, TRAIN, VALIDATION
from wroformer_jax.errors import InputError
from wroformer_jax.io.files import check_space, disk_errors_named
from wroformer_jax.io.progress import Progress

_ADVICE = "repair them, or leave these songs out with --skip-bad"
_INSPECTORS = 16  # threads, which mostly wait for the disk

Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class _Job:
    """How and where a set is written."""

    storage: Storage
    staging: Staging
    workers: int
    skip_bad: bool
    overwrite: bool
    say: Say


class BadFiles(InputError):
    """Some files cannot be used; `reasons` has a sentence for each."""

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
    """Writes the stems of a folder, or of a table of files, as a set; docs/data.md describes layouts and encodings.

    If a call was interrupted, the same call again continues where it stopped.

    Args:
      source: a folder or a .csv file.
      directory: where to write the set, a local path or gs://.
      layout: one of find_stems.LAYOUTS, or None to detect it.
      sample_rate: of the set, in Hz; files of other rates are resampled.
      segment_seconds: length of a record.
      encoding: lossless, int16 or float32.
      workers: number of processes that write. More than 1 only in programs whose main module can be imported
        (`if __name__ == "__main__"`).
      skip_bad: leave out songs that have an unusable file.
      overwrite: replace an existing set once the new one is whole.
      say: called with each line of progress and of warnings.

    Returns:
      A summary of the stored songs and of those that were left out.

    Raises:
      BadFiles: some files cannot be used, and `skip_bad` is false. Nothing is written if their headers show it.
      InputError: no stems were found, the directory is in use or holds something else, or the disk is full.
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
        raise _bad_files(bad, ", and no song is left: repair them")
    return _write(splits, bad, _Job(storage, staging, workers, skip_bad, overwrite, say))


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
    """Writes a set of synthetic songs: those of the seeds (seed, 0, index) to train on, (seed, 1, index) to test on.

    Args:
      directory: where to write the set, a local path or gs://.
      train_songs: number of songs to train on.
      test_songs: number of songs to test on.
      seconds: length of each song.
      sample_rate: in Hz, at least synthetic.song.MIN_SAMPLE_RATE.
      seed: 0 or more.
      segment_seconds: as for `prepare`.
      encoding: as for `prepare`.
      workers: as for `prepare`.
      overwrite: as for `prepare`.
      say: as for `prepare`.

    Raises:
      InputError: a number is out of range; and as for `prepare`.
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
    return _write(splits, [], _Job(storage, staging, workers, False, overwrite, say))


def _inspected(songs: Iterable[FoundSong]) -> tuple[dict[str, list[InspectedSong]], list[tuple[str, str]]]:
    """Returns the usable songs of each split, and (song, reason) for each unusable file."""
    songs = list(songs)
    splits: dict[str, list[InspectedSong]] = {split: [] for split in SPLITS}
    bad = []
    with concurrent.futures.ThreadPoolExecutor(_INSPECTORS) as threads:
        for song, inspected in zip(songs, threads.map(_inspect_song, songs), strict=True):
            errors = [error for error in inspected.values() if isinstance(error, InputError)]
            bad += [(song.name, str(error)) for error in errors]
            files = {stem: file for stem, file in inspected.items() if isinstance(file, SourceFile)}
            if not errors:
                splits[song.split].append(InspectedSong(song, files))
    return splits, bad


def _inspect_song(song: FoundSong) -> dict[str, SourceFile | InputError]:
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


def _write(splits: Mapping[str, Sequence[SourceSong]], bad: Sequence[tuple[str, str]], job: _Job) -> Prepared:
    """Writes the shards that do not exist yet, and publishes all of them as a set."""
    staging, storage = job.staging, job.storage
    units = plan(splits, storage)
    with staging.claimed(overwrite=job.overwrite):
        finished = _finish_units(units, job)
        bad = [*bad, *(reason for unit in units for reason in finished[unit.key].bad)]
        parts = {
            split: [
                (unit.key, part)
                for unit in units
                if unit.split == split and (part := finished[unit.key].part) is not None
            ]
            for split in splits
        }
        if not any(parts.values()):
            raise _bad_files(bad, ", and no song is left: repair them")
        staging.publish(storage, parts)
    return Prepared(
        os.fspath(staging.directory),
        storage,
        {split: tuple(part for _, part in shards) for split, shards in parts.items() if shards},
        tuple(bad),
    )


def _finish_units(units: Sequence[Unit], job: _Job) -> dict[str, Written]:
    """Writes the units that no earlier run has finished. Returns the results of all units by their keys.

    Raises:
      BadFiles: units with bad files were not written, and bad files are not to be skipped. The others are kept.
    """
    staging = job.staging
    finished = {key: done for key, done in staging.finished(units).items() if job.skip_bad or not done.bad}
    todo = [unit for unit in units if unit.key not in finished]
    if finished:
        job.say(f"{staging.directory}: goes on with {len(finished)} of {len(units)} shards written earlier")
    _check_space(todo, job.storage, staging)
    failed: dict[str, Written] = {}

    def finish(unit: Unit, written: Written) -> None:
        if written.bad and not job.skip_bad:
            failed[unit.key] = written
        else:
            staging.keep(unit.key, written)
            finished[unit.key] = written

    if todo:
        task = functools.partial(
            write_unit, storage=job.storage, folder=os.fspath(staging.folder), skip_bad=job.skip_bad
        )
        with Progress("writing", sum(unit.seconds for unit in todo), _hours_written, say=job.say) as progress:
            run_tasks(task, todo, workers=job.workers, finish=finish, advance=progress.advance)
        hours, pace = progress.done / 3600, progress.pace
        job.say(f"wrote {hours:.2f} h of audio in {progress.elapsed:.1f} s, {pace:.0f}x real time")
    if failed:
        reasons = [reason for unit in todo if unit.key in failed for reason in failed[unit.key].bad]
        kept = f"{len(finished)} of {len(units)} shards"
        raise _bad_files(reasons, f"; the rest is written ({kept}) and will be kept; {_ADVICE}")
    return finished


def _hours_written(progress: Progress) -> str:
    return f"{progress.done / 3600:.2f} of {progress.seconds / 3600:.2f} h of audio, {progress.pace:.0f}x real time"


def _check_space(units: Sequence[Unit], storage: Storage, staging: Staging) -> None:
    """Raises an InputError if the disk is too full for encodings whose size is known beforehand."""
    width = {"int16": 2, "float32": 4}.get(storage.encoding)
    if width and staging.is_local:
        seconds = sum(unit.seconds for unit in units)
        with disk_errors_named(staging.directory):
            check_space(staging.folder, round(seconds * storage.sample_rate) * storage.channels * width)
