"""Scores separated songs one at a time and one stem at a time; memory does not grow with their length.

For each song: a model separates the mixture as a stream into float files, or the files of another tool are found
(estimates.py). Then the reference (songs.py) and the estimate of each stem are read side by side, second by second, and
compared (streaming_sdr.py, bleedless.py). The scores are added to the results (results.py).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import streaming_sdr
from wroformer_jax.evaluation.bleedless import bleedless_fullness
from wroformer_jax.evaluation.estimates import FoundEstimates, Separator, check_estimate, read_estimate
from wroformer_jax.evaluation.metrics import museval_csdr
from wroformer_jax.evaluation.results import Results, StemScores
from wroformer_jax.evaluation.songs import ReferenceSong


def choose_stems(
    songs: Sequence[ReferenceSong], offered: Sequence[str], wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the stems to score: the wanted ones, or by default all stems that are offered and that some song has.

    Args:
      songs: the references.
      offered: stems that have estimates.
      wanted: of `--stems`; None or nothing for the default.

    Raises:
      InputError: a wanted stem has no estimates, or no song has it; or no song has any of the offered stems.
    """
    for stem in wanted or ():
        if stem not in offered:
            raise InputError(f"--stems {stem}: only these stems have estimates: {', '.join(offered) or 'none'}")
    in_songs = [stem for stem in wanted or offered if any(song.has(stem) for song in songs)]
    missing = [stem for stem in wanted or offered if stem not in in_songs]
    if not in_songs or (wanted and missing):
        found = sorted({stem for song in songs for stem in song.stems})
        raise InputError(f"no song has the stem {' or '.join(missing) or '-'}: the songs have {', '.join(found)}")
    return tuple(in_songs)


def score_song(song: ReferenceSong, estimates: Mapping[str, Path], *, use_museval: bool = False) -> StemScores:
    """Computes all metrics of the stems of a song; NaN where a metric is undefined.

    Args:
      song: the references.
      estimates: the file of each stem to score.
      use_museval: computes cSDR with the museval package, which takes gigabytes.

    Raises:
      InputError: a file cannot be decoded to its end.
    """
    shape, rate = song.shape, song.shape.sample_rate
    mixture = streaming_sdr.half_second_energies(song.mixture(), sample_rate=rate)
    sums = {}
    scores: StemScores = {}
    for stem, path in estimates.items():
        reference, estimate = functools.partial(song.reference, stem), functools.partial(read_estimate, path, shape)
        sums[stem] = streaming_sdr.sums_of_seconds(reference(), estimate(), sample_rate=rate)
        bleedless, fullness = bleedless_fullness(reference, estimate, sample_rate=rate)
        scores[stem] = {
            "usdr": streaming_sdr.usdr(sums[stem]),
            "si_sdr": streaming_sdr.si_sdr(sums[stem]),
            "bleedless": bleedless,
            "fullness": fullness,
            "leakage": streaming_sdr.leakage(sums[stem], mixture),
        }
    medians = _museval_csdr(song, estimates) if use_museval else streaming_sdr.csdr(list(sums.values()))
    for row, median in zip(scores.values(), medians, strict=True):
        row["csdr"] = median
    return scores


def evaluate(
    songs: Sequence[ReferenceSong],
    stems: Sequence[str],
    source: Separator | FoundEstimates,
    results: Results,
    *,
    use_museval: bool = False,
    say: Callable[[str], None],
    report: Callable[[InputError], None],
) -> int:
    """Scores the songs that `results` lacks, and adds each to the results as soon as it is scored.

    Args:
      songs: from `find_songs` or `find_set_songs`.
      stems: the stems to score.
      source: provides the estimates.
      results: receives the scores; songs that it already holds are skipped.
      use_museval: computes cSDR with the museval package.
      say: called with each line of progress: one per song, and one per note about a song.
      report: called with the error of each song that cannot be scored.

    Returns:
      The number of songs that could not be scored.

    Raises:
      InputError: the results cannot be written.
    """
    began, scored, failed = time.perf_counter(), 0, 0
    to_do = [song for song in songs if not _is_done(song, stems, source, results)]
    for left, song in zip(range(len(to_do) - 1, -1, -1), to_do, strict=True):
        try:
            state = source.state(song)
            with source.estimates(song, stems) as paths:
                notes = [*song.shape.notes]
                notes += [note for path in paths.values() if (note := check_estimate(path, song.shape))]
                scores = score_song(song, paths, use_museval=use_museval)
        except InputError as error:
            report(_naming(song, error))
            results.drop(song.name)
            failed += 1
            continue
        results.add(song.name, scores, seconds=song.shape.seconds, state=state, notes=notes)
        for note in notes:
            say(f"{song.name}: {note}")
        scored += 1
        seconds_left = (time.perf_counter() - began) / scored * left
        say(_progress_line(f"[{len(songs) - left}/{len(songs)}] {song.name}", scores, seconds_left))
    results.write()
    return failed


def _museval_csdr(song: ReferenceSong, estimates: Mapping[str, Path]) -> list[float]:
    references = [np.concatenate(list(song.reference(stem)), axis=-1) for stem in estimates]
    estimated = [np.concatenate(list(read_estimate(path, song.shape)), axis=-1) for path in estimates.values()]
    return museval_csdr(references, estimated, sample_rate=song.shape.sample_rate)


def _is_done(song: ReferenceSong, stems: Sequence[str], source: Separator | FoundEstimates, results: Results) -> bool:
    try:
        return results.holds(song.name, source.state(song)) and source.has_kept(song, stems)
    except InputError:  # `evaluate` reports it when it reaches the song
        return False


def _progress_line(about: str, scores: StemScores, seconds_left: float) -> str:
    """Returns '[3/50] Artist - Title: vocals 8.12 dB, instrumental 14.90 dB uSDR (12 min left)'."""
    values = ", ".join(
        f"{stem} {'undefined' if np.isnan(of_stem['usdr']) else format(of_stem['usdr'], '.2f') + ' dB'}"
        for stem, of_stem in scores.items()
    )
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 60 else f"{seconds_left:.0f} s"
    return f"{about}: {values} uSDR" + (f" ({left} left)" if seconds_left else "")


def _naming(song: ReferenceSong, error: InputError) -> InputError:
    """Returns the error with the song's name in front, unless its text already contains the song's location."""
    if song.location in str(error):
        return error
    named = InputError(f"{song.name}: {error}")
    named.__cause__ = error
    return named
