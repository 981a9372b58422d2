"""Training examples: draws the crops that they consist of, without reading audio, and renders them.

Drawing and rendering are separate. A `Recipe` is small and holds everything that is random, so that an example depends
only on (seed, number of the example), whichever process renders it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.augmentation import Augmentation
from wroformer_jax.data.augment import Change, apply_change, draw_changes
from wroformer_jax.data.record_set import RecordSet, StoredSong
from wroformer_jax.errors import InputError
from wroformer_jax.stems import INSTRUMENTAL, MIXTURE, VOCALS

_MOST_DRAWS = 10  # of another start, if the crop is silent

Batch = dict[str, Float32[np.ndarray, "batch ..."]]


@dataclasses.dataclass(frozen=True)
class Crop:
    """A crop of a stem of a song, one of the summands of an example's stem."""

    song: int  # number of the song in the split
    start: int  # first sample in the song
    change: Change


# For each stem of the mixture, the crops that are summed to it; none if the stem is silent.
Recipe = tuple[tuple[Crop, ...], ...]


def parts_of_targets(
    record_set: RecordSet, stems: Sequence[str], targets: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Returns the stems that are summed to the mixture and, for each target, the stems that are summed to it.

    Ignores case: sets have names in lower case, checkpoints have whatever case their authors chose.

    Args:
      record_set: a prepared set.
      stems: the stems of the mixture; an empty sequence means all stems of the set.
      targets: names of such stems, or "instrumental".

    Raises:
      InputError: a stem is not in the set, or a target is not in the mixture.
    """
    stored = {stem.lower(): stem for stem in record_set.stems}
    for stem in stems:
        if stem.lower() not in stored:
            raise InputError(f"{record_set.path} has no stem {stem!r}: its stems are {', '.join(record_set.stems)}")
    stems = tuple(stored[stem.lower()] for stem in stems) or record_set.stems
    parts: dict[str, tuple[str, ...]] = {stem.lower(): (stem,) for stem in stems}
    if VOCALS in parts and len(stems) > 1:
        parts.setdefault(INSTRUMENTAL, tuple(stem for stem in stems if stem.lower() != VOCALS))
    for target in targets:
        if target.lower() not in parts:
            raise InputError(
                f"target {target!r} is not a stem of the mixtures of {record_set.path}: the targets there are "
                f"{', '.join(parts)}"
            )
    return stems, {target: parts[target.lower()] for target in targets}


def whole_song(
    record_set: RecordSet, song: StoredSong, targets: Sequence[str], channels: int, stems: Sequence[str] = ()
) -> tuple[Float32[np.ndarray, "channel sample"], Float32[np.ndarray, "target channel sample"]]:
    """Returns the mixture and the targets of a whole song.

    The mixture is the stored one if the song has one, unless `stems` leaves out stems of the song.

    Args:
      record_set: a prepared set.
      song: one of its songs.
      targets: names of stems, or "instrumental".
      channels: 1 or 2.
      stems: the stems of the mixture; an empty sequence means all stems of the set.

    Raises:
      InputError: a target is not in the mixture, or a record is damaged.
    """
    stems, parts = parts_of_targets(record_set, stems, targets)
    mixture = np.zeros((channels, song.samples), np.float32)
    sums = np.zeros((len(targets), channels, song.samples), np.float32)
    for stem in stems:
        audio = _read(record_set, song, stem, 0, song.samples, channels)
        _add(audio, stem, mixture, sums, parts)
    if MIXTURE in song.stems and song.stems.keys() <= {MIXTURE, *stems}:
        mixture = _read(record_set, song, MIXTURE, 0, song.samples, channels)
    return mixture, sums


class Examples:
    """The examples of a split of a set. An epoch lasts as long as all songs together; long songs occur more often.

    Args:
      record_set: a prepared set.
      split: name of a split of the set.
      stems: the stems of the mixture; an empty sequence means all stems of the set.
      targets: names of such stems, or "instrumental".
      channels: 1 (the mean of the channels of a stereo set) or 2 (the channel of a mono set twice).
      crop_samples: length of an example.
      augmentation: how the examples are changed at random.

    Raises:
      InputError: the split, a stem or a target does not exist, or the split has no songs with these stems.
    """

    def __init__(
        self,
        record_set: RecordSet,
        split: str,
        *,
        stems: Sequence[str],
        targets: Sequence[str],
        channels: int,
        crop_samples: int,
        augmentation: Augmentation,
    ) -> None:
        self.stems, self._parts = parts_of_targets(record_set, stems, targets)
        self._record_set = record_set
        self._songs = record_set.songs(split)
        self._channels = channels
        self._crop_samples = crop_samples
        self._augmentation = augmentation
        self._lengths = {stem: _lengths(self._songs, stem) for stem in self.stems}
        self._ends = {stem: np.cumsum(lengths) for stem, lengths in self._lengths.items()}
        longest = np.max(list(self._lengths.values()), axis=0, initial=0)
        if not longest.any():
            raise InputError(f"the split {split!r} of {record_set.path} has no song with {', '.join(self.stems)}")
        # An epoch has the number of a song once for each crop that fits into the song, and at least once.
        crops = np.where(longest > 0, np.maximum(1, np.rint(longest / crop_samples)), 0).astype(np.int64)
        self._items = np.repeat(np.arange(len(self._songs)), crops)

    def __len__(self) -> int:
        """The number of examples in an epoch."""
        return len(self._items)

    def draw(self, item: int, rng: np.random.Generator) -> Recipe:
        """Draws the recipe of the example number `item` of an epoch."""
        changes = {stem: draw_changes(self._augmentation, rng) for stem in self.stems}
        if rng.random() < self._augmentation.silence:
            silent = self._parts[list(self._parts)[rng.integers(len(self._parts))]]
            changes |= dict.fromkeys(silent, ())
        song = int(self._items[item])
        starts = self._draw_starts(song, rng)
        return tuple(self._crops(stem, starts.get(stem), changes[stem], rng) for stem in self.stems)

    def render(self, recipes: Sequence[Recipe], start: int = 0, stop: int | None = None) -> Batch:
        """Reads and mixes examples, or the same span of samples of each; reads no audio outside it.

        Args:
          recipes: one for each example.
          start: first sample of the span, from 0.
          stop: the sample after the last one, by default the end of the example, after which there is silence.

        Returns:
          "mixture" (batch, channel, sample) and "targets" (batch, target, channel, sample) with `stop - start` samples;
          the mixture is the sum of its stems.

        Raises:
          InputError: a record is damaged.
        """
        stop = self._crop_samples if stop is None else stop
        end = min(stop, self._crop_samples)  # behind it the example is silent
        shape = (self._channels, stop - start)
        mixture = np.zeros((len(recipes), *shape), np.float32)
        targets = np.zeros((len(recipes), len(self._parts), *shape), np.float32)
        for row, recipe in enumerate(recipes if start < end else ()):
            sums = mixture[row, :, : end - start], targets[row, :, :, : end - start]
            for stem, crops in zip(self.stems, recipe, strict=True):
                if crops:
                    _add(self._render_stem(stem, crops, start, end), stem, *sums, self._parts)
        return {"mixture": mixture, "targets": targets}

    def _render_stem(
        self, stem: str, crops: Sequence[Crop], start: int, stop: int
    ) -> Float32[np.ndarray, "channel sample"]:
        parts = (apply_change(self._read_crop(stem, crop, start, stop), crop.change) for crop in crops)
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def _read_crop(self, stem: str, crop: Crop, start: int, stop: int) -> Float32[np.ndarray, "channel sample"]:
        """Reads the stored samples that are heard from `start` to `stop` of a crop; the change is not applied yet."""
        if crop.change.invert_time:  # played backwards: the last samples are stored first
            start, stop = self._crop_samples - stop, self._crop_samples - start
        song = self._songs[crop.song]
        return _read(self._record_set, song, stem, crop.start + start, crop.start + stop, self._channels)

    def _draw_starts(self, song: int, rng: np.random.Generator) -> dict[str, tuple[int, int]]:
        """Draws (song, start) for the stems of an example to which `song` contributes; a stem may have none."""
        its_stems = [stem for stem in self.stems if self._lengths[stem][song]]
        if rng.random() >= self._augmentation.remix:
            start = self._draw_start(song, its_stems, rng)
            return dict.fromkeys(its_stems, (song, start))
        kept = its_stems[rng.integers(len(its_stems))]
        return {
            stem: (song, self._draw_start(song, [stem], rng)) if stem == kept else self._draw_elsewhere(stem, song, rng)
            for stem in self.stems
            if self._lengths[stem].any()
        }

    def _crops(
        self, stem: str, start: tuple[int, int] | None, changes: Sequence[Change], rng: np.random.Generator
    ) -> tuple[Crop, ...]:
        if start is None or not changes:
            return ()
        others = [self._draw_elsewhere(stem, start[0], rng) for _ in changes[1:]]
        return tuple(Crop(*where, change) for where, change in zip([start, *others], changes, strict=True))

    def _draw_start(self, song: int, stems: Sequence[str], rng: np.random.Generator) -> int:
        """Draws a start in a song where each of `stems` sounds, unless it is silent throughout the song."""
        last = max(0, max(self._lengths[stem][song] for stem in stems) - self._crop_samples)
        audible = [stem for stem in stems if "1" in self._songs[song].stems[stem].active]
        return self._draw_sounding(
            lambda: int(rng.integers(last + 1)),
            lambda start: all(self._sounds(stem, song, start) for stem in audible),
            rng,
        )

    def _draw_elsewhere(self, stem: str, song: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draws (song, start) in another song that has the stem, by length; in `song` if no other has it."""
        lengths, ends = self._lengths[stem], self._ends[stem]
        skipped = int(lengths[song]) if lengths[song] < ends[-1] else 0

        def draw() -> tuple[int, int]:
            sample = int(rng.integers(ends[-1] - skipped))
            if sample >= ends[song] - skipped:
                sample += skipped
            other = int(np.searchsorted(ends, sample, side="right"))
            return other, int(rng.integers(max(0, lengths[other] - self._crop_samples) + 1))

        return self._draw_sounding(draw, lambda drawn: self._sounds(stem, *drawn), rng)

    def _draw_sounding(self, draw: Callable[[], Any], sounds: Callable[[Any], bool], rng: np.random.Generator) -> Any:
        drawn = draw()
        if rng.random() < self._augmentation.skip_silence:
            for _ in range(_MOST_DRAWS):
                if sounds(drawn):
                    break
                drawn = draw()
        return drawn

    def _sounds(self, stem: str, song: int, start: int) -> bool:
        """Whether a second that the crop touches is marked active."""
        rate = self._record_set.sample_rate
        return "1" in self._songs[song].stems[stem].active[start // rate : -(-(start + self._crop_samples) // rate)]


def _lengths(songs: Sequence[StoredSong], stem: str) -> np.ndarray:
    """Returns the length of a stem in each song, in samples; 0 for songs without it."""
    return np.array([song.stems[stem].samples if stem in song.stems else 0 for song in songs], np.int64)


def _read(
    record_set: RecordSet, song: StoredSong, stem: str, start: int, stop: int, channels: int
) -> Float32[np.ndarray, "channel sample"]:
    audio = record_set.read(song, stem, start, stop)
    if len(audio) == channels:
        return audio
    return audio.mean(axis=0, keepdims=True) if channels == 1 else np.repeat(audio, channels, axis=0)


def _add(
    audio: Float32[np.ndarray, "channel sample"],
    stem: str,
    mixture: Float32[np.ndarray, "channel sample"],
    targets: Float32[np.ndarray, "target channel sample"],
    parts: Mapping[str, Sequence[str]],
) -> None:
    """Adds a stem in place to the mixture and to each target that contains it."""
    mixture += audio
    for target, stems in zip(targets, parts.values(), strict=True):
        if stem in stems:
            target += audio
