"""Separates a stream in overlapping chunks and adds the estimates up.

This is the overlap-add of the public tools (`demix` of ZFTurbo's Music-Source-Separation-Training): a chunk starts
every chunk / overlap samples, its weights fade linearly over a tenth of it at both ends, the weighted sum is divided by
the sum of the weights, and the ends of a song are reflected so that every sample lies in `overlap` chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

# The model as a function of a batch of chunks.
Run = Callable[[Float32[np.ndarray, "batch channel sample"]], Float32[np.ndarray, "batch stem channel sample"]]

# A weight of zero would lose samples that lie in one chunk only (overlap 1). Beside other weights this one is lost to
# rounding.
_SMALLEST_WEIGHT = 1e-6


class Chunk(NamedTuple):
    """A chunk, and where it lies in the song."""

    audio: Float32[np.ndarray, "channel chunk"]  # padded at the end if the song ends in this chunk
    samples: int  # number of samples without the padding
    is_first: bool
    is_last: bool


def in_chunks(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], run: Run, *, chunk: int, step: int, batch_size: int
) -> Iterator[Float32[np.ndarray, "stem channel _"]]:
    """Separates a stream in overlapping chunks; yields as many samples as the stream has.

    Args:
      blocks: the stream.
      run: separates a batch of chunks.
      chunk: length of a chunk in samples.
      step: distance between the starts of two chunks in samples.
      batch_size: number of chunks in a batch.
    """
    blocks = iter(blocks)
    border = chunk - step
    head = gather(blocks, 2 * border + 1)
    if head.shape[-1] <= 2 * border:  # the public tools call this too short to reflect
        border = 0
    chunks = _chunks(_reflect_ends(itertools.chain([head], blocks), border), chunk=chunk, step=step, border=border)
    total, weights = 0.0, np.zeros(chunk, np.float32)
    surplus = border  # samples of the reflection at the start that are still to be dropped
    for part, estimate in _estimates(chunks, run, batch_size):
        weight = _window(chunk, fade_in=not part.is_first, fade_out=border > 0 or not part.is_last)
        total = total + weight * estimate
        weights += weight
        # The next chunk starts a step later, so the samples before it are finished. After the last chunk only the
        # reflection at the end remains.
        finished = part.samples - border if part.is_last else step
        if finished > surplus:
            yield total[..., surplus:finished] / weights[surplus:finished]
        surplus = max(0, surplus - finished)
        total, weights = _shifted(total, step), _shifted(weights, step)


def _window(chunk: int, *, fade_in: bool, fade_out: bool) -> Float32[np.ndarray, " chunk"]:
    """Returns the weight of each sample of a chunk: 1, with linear fades over a tenth of the chunk."""
    fade = np.maximum(np.linspace(0, 1, chunk // 10, dtype=np.float32), _SMALLEST_WEIGHT)
    window = np.ones(chunk, np.float32)
    if fade_in:
        window[: len(fade)] = fade
    if fade_out:
        window[chunk - len(fade) :] = fade[::-1]
    return window


def _reflect_ends(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], border: int
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Extends a stream by `border` samples on both sides, mirrored at its first and last sample.

    The first block must be longer than `border`.
    """
    tail = None
    for block in blocks:
        if tail is None:
            yield block[:, border:0:-1]
            tail = block[:, :0]
        yield block
        tail = np.concatenate([tail, block], axis=-1)[:, -(border + 1) :]
    if tail is not None:
        yield tail[:, -2 : -(border + 2) : -1]


def _chunks(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], *, chunk: int, step: int, border: int
) -> Iterator[Chunk]:
    """Cuts a stream into chunks that start every `step` samples.

    Stops after the last chunk that has a sample before the `border` at the end.
    """
    blocks = iter(blocks)
    waiting = gather(blocks, chunk + 1)
    is_first = True
    while waiting.shape[-1]:
        samples = min(chunk, waiting.shape[-1])
        is_last = waiting.shape[-1] <= step + border
        yield Chunk(pad_end(waiting[:, :samples], chunk), samples, is_first, is_last)
        if is_last:
            return
        waiting = gather(blocks, chunk + 1, waiting[:, step:])
        is_first = False


def _estimates(
    chunks: Iterable[Chunk], run: Run, batch_size: int
) -> Iterator[tuple[Chunk, Float32[np.ndarray, "stem channel chunk"]]]:
    """Runs the model on batches of equal size, so that it is compiled once; the last batch is padded."""
    chunks = iter(chunks)
    while batch := list(itertools.islice(chunks, batch_size)):
        audio = np.zeros((batch_size, *batch[0].audio.shape), np.float32)
        for i, part in enumerate(batch):
            audio[i] = part.audio
        yield from zip(batch, run(audio), strict=False)  # drops the estimates of the padding


def gather(blocks: Iterator[np.ndarray], samples: int, start: np.ndarray | None = None) -> np.ndarray:
    """Joins `start` and blocks until the result has at least that many samples or the blocks end."""
    parts = [] if start is None else [start]
    held = sum(part.shape[-1] for part in parts)
    while held < samples and (block := next(blocks, None)) is not None:
        parts.append(block)
        held += block.shape[-1]
    return np.concatenate(parts, axis=-1)


def pad_end(audio: Float32[np.ndarray, "channel _"], samples: int) -> Float32[np.ndarray, "channel _"]:
    """Pads audio at its end to a length in samples: by reflection, or by silence if audio is less than half of it."""
    missing = samples - audio.shape[-1]
    mode = "reflect" if audio.shape[-1] > samples // 2 else "constant"
    return np.pad(audio, ((0, 0), (0, missing)), mode=mode)


def _shifted(samples: np.ndarray, step: int) -> np.ndarray:
    """Shifts samples `step` to the front and fills up with zeros."""
    shifted = np.zeros_like(samples)
    shifted[..., : samples.shape[-1] - step] = samples[..., step:]
    return shifted
