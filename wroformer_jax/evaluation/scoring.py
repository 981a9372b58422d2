"""Scores of separated songs, one song at a time, one stem at a time, in memory that does not grow with their length.

One song's way: its mixture is separated as a stream into float files, or the files of another tool are taken
(estimates.py); then each stem's reference (songs.py) and estimate are read side by side, second by second, and compared
(framewise.py, mel.py); what was found is kept (results.py).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from wroformer_jax.errors import InputError
from wroformer_jax.evaluation import bleedless as mel
from wroformer_jax.evaluation import streaming_sdr
from wroformer_jax.evaluation.estimates import FoundEstimates, Separator, check_estimate, read_estimate
from wroformer_jax.evaluation.metrics import museval_csdr
from wroformer_jax.evaluation.results import Results, Scores
from wroformer_jax.evaluation.songs import Song


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


def score_song(song: Song, estimates: Mapping[str, Path], *, use_museval: bool = False) -> Scores:
    """All metrics of each stem of a song; NaN for those that are undefined.

    Args:
      song: the references.
      estimates: the file of each stem to score.
      use_museval: lets the museval package compute cSDR, which takes gigabytes.

    Raises:
      InputError: something cannot be decoded to its end.
    """
    shape, rate = song.shape, song.shape.sample_rate
    mixture = streaming_sdr.halves(song.mixture(), sample_rate=rate)
    frames = {}
    scores: Scores = {}
    for stem, path in estimates.items():
        reference, estimate = functools.partial(song.reference, stem), functools.partial(read_estimate, path, shape)
        frames[stem] = streaming_sdr.frames(reference(), estimate(), sample_rate=rate)
        bleedless, fullness = mel.bleedless_fullness(reference, estimate, sample_rate=rate)
        scores[stem] = {
            "usdr": streaming_sdr.usdr(frames[stem]),
            "si_sdr": streaming_sdr.si_sdr(frames[stem]),
            "bleedless": bleedless,
            "fullness": fullness,
            "leakage": streaming_sdr.leakage(frames[stem], mixture),
        }
    medians = _museval_csdr(song, estimates) if use_museval else streaming_sdr.csdr(list(frames.values()))
    for row, median in zip(scores.values(), medians, strict=True):
        row["csdr"] = median
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
      songs: of `find_songs` or `find_set_songs`.
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
    to_do = [song for song in songs if not _is_done(song, stems, source, results)]
    for left, song in zip(range(len(to_do) - 1, -1, -1), to_do, strict=True):
        try:
            state = source.state(song)
            with source.estimates(song, stems) as paths:
                notes = [*song.shape.notes]
                notes += [note for path in paths.values() if (note := check_estimate(path, song.shape))]
                scores = score_song(song, paths, use_museval=use_museval)
        except InputError as error:
            report(_about(song, error))
            results.drop(song.name)
            failed += 1
            continue
        results.add(song.name, scores, seconds=song.shape.seconds, state=state, notes=notes)
        for note in notes:
            say(f"{song.name}: {note}")
        done += 1
        seconds_left = (time.perf_counter() - begun) / done * left
        say(_line(f"[{len(songs) - left}/{len(songs)}] {song.name}", scores, seconds_left))
    results.write()
    return failed


def _museval_csdr(song: Song, estimates: Mapping[str, Path]) -> list[float]:
    references = [np.concatenate(list(song.reference(stem)), axis=-1) for stem in estimates]
    estimated = [np.concatenate(list(read_estimate(path, song.shape)), axis=-1) for path in estimates.values()]
    return museval_csdr(references, estimated, sample_rate=song.shape.sample_rate)


def _is_done(song: Song, stems: Sequence[str], source: Separator | FoundEstimates, results: Results) -> bool:
    try:
        return results.holds(song.name, source.state(song)) and source.has_left(song, stems)
    except InputError:  # reported when it is the song's turn
        return False


def _line(about: str, scores: Scores, seconds_left: float) -> str:
    """'[3/50] Artist - Title: vocals 8.12 dB, instrumental 14.90 dB uSDR (12 min left)'."""
    values = ", ".join(
        f"{stem} {'undefined' if np.isnan(of_stem['usdr']) else format(of_stem['usdr'], '.2f') + ' dB'}"
        for stem, of_stem in scores.items()
    )
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 60 else f"{seconds_left:.0f} s"
    return f"{about}: {values} uSDR" + (f" ({left} left)" if seconds_left else "")


def _about(song: Song, error: InputError) -> InputError:
    """The error with the song's name in front, unless it says what it is about."""
    if song.place in str(error):
        return error
    named = InputError(f"{song.name}: {error}")
    named.__cause__ = error
    return named
