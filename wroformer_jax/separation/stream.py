"""From a mixture to its stems: `separate` for arrays, `separate_blocks` for streams of any length.

One song's way: blocks of mixture come in at their own rate, are resampled and given the model's channels, cut into
overlapping chunks, and separated; the estimates are overlap-added, brought back to the mixture's channels and
rate, and leave as blocks of stems. Every stage is a generator that holds no more than a few chunks.

The overlap-add is that of the public tools (`demix` of ZFTurbo's Music-Source-Separation-Training): chunks every
chunk / overlap samples, linear fades over a tenth of a chunk, the sum divided by the summed weights, and the ends
of a song reflected so that every sample lies in `overlap` chunks.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import resample_blocks
from wroformer_jax.separation.forward import (
    Params,
    apply_model,
    apply_model_to_whole,
    in_one_pass,
    memory_errors_named,
    model_runner,
    whole_hops,
)
from wroformer_jax.separation.overlap_add import gather, overlap_add

# More than anybody separates at once. Far above, sizes overflow in ways that no longer look like too little memory.
LONGEST_CHUNK = 24 * 3600  # seconds
LARGEST_BATCH = 1 << 16  # chunks


def stem_names(config: ModelConfig) -> tuple[str, ...]:
    """The names that `separate` returns: the model's stems and, if there is only one, the rest of the mixture.

    The rest is called 'instrumental', or 'vocals' where the stem itself is the instrumental.
    """
    if len(config.stems) > 1:
        return config.stems
    return (*config.stems, "vocals" if config.stems[0] == "instrumental" else "instrumental")


def separate_blocks(
    model: Any,
    params: Params,
    blocks: Iterable[Float32[np.ndarray, "channel _"]],
    *,
    sample_rate: int,
    chunk_seconds: float | None = 8.0,
    overlap: int = 2,
    batch_size: int = 1,
    tta: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Separates a stream: takes blocks of mixture, yields blocks of stems as they are finished.

    The blocks that come out have other lengths than those that go in, the same for all stems, and add up to the
    same number of samples. What is held at any time is a few chunks, however long the stream (all of it for
    `chunk_seconds=None`). Arguments and errors as for `separate`.
    """
    config: ModelConfig = model.config
    _check_whole("sample_rate", sample_rate)
    _check_whole("batch_size", batch_size, most=LARGEST_BATCH)
    chunk = chunk_samples(config, chunk_seconds, overlap)
    blocks = iter(blocks)
    first = next(blocks, None)
    if first is None:
        return
    channels = len(first)
    # The mixture waits here for its stems: the rest is a difference, and the count is where the stems end.
    waiting = _Queue()
    heard = waiting.recording(itertools.chain([first], blocks))
    if sample_rate != config.sample_rate:
        heard = resample_blocks(_with_room(heard, sample_rate, config), sample_rate, config.sample_rate)
    apply = apply_model if chunk else apply_model_to_whole
    run = model_runner(
        functools.partial(apply, model, jax.device_put(params)), model.config, channels=channels, tta=tta
    )
    if chunk is None:
        estimates = in_one_pass(heard, run, config)
    else:
        estimates = overlap_add(heard, run, chunk=chunk, step=chunk // overlap, batch_size=batch_size)
    amount = "the whole recording" if chunk is None else f"{batch_size} x {chunk / config.sample_rate:.1f} s of audio"
    estimates = memory_errors_named(estimates, amount)
    flat = (estimate.reshape(-1, estimate.shape[-1]) for estimate in estimates)
    for block in resample_blocks(flat, config.sample_rate, sample_rate):
        mixture = waiting.take(block.shape[-1])
        samples = mixture.shape[-1]
        if samples == 0:
            continue
        stems = block[:, :samples].reshape(config.num_stems, channels, samples)
        names = stem_names(config)
        if len(names) > config.num_stems:
            stems = (*stems, mixture - stems[0])
        yield dict(zip(names, stems, strict=True))


def chunk_samples(config: ModelConfig, chunk_seconds: float | None, overlap: int) -> int | None:
    """The length of a chunk in samples of the model, whole hops; None for the whole recording.

    Raises:
      InputError: the chunk is shorter than an STFT window or longer than a day, or `overlap` is not a whole number
        of at least 1.
    """
    _check_whole("overlap", overlap)
    if chunk_seconds is None:
        return None
    shortest = max(config.stft_n_fft, overlap)
    if not math.isfinite(chunk_seconds) or chunk_seconds * config.sample_rate < shortest:
        raise InputError(
            f"chunk_seconds is {chunk_seconds}, expected at least {shortest / config.sample_rate:.3f} (an STFT window, "
            "and a sample for each overlapping chunk)"
        )
    if chunk_seconds > LONGEST_CHUNK:
        raise InputError(f"chunk_seconds is {chunk_seconds}, expected at most {LONGEST_CHUNK} (a day)")
    return whole_hops(config, math.ceil(chunk_seconds * config.sample_rate))


class _Queue:
    """Samples that went by and are still needed."""

    def __init__(self) -> None:
        self._blocks: collections.deque[np.ndarray] = collections.deque()

    def recording(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes blocks on and keeps them."""
        for block in blocks:
            self._blocks.append(block)
            yield block

    def take(self, samples: int) -> Float32[np.ndarray, "channel _"]:
        """The oldest samples, at most that many; they are no longer kept."""
        taken = gather((self._blocks.popleft() for _ in range(len(self._blocks))), samples)
        self._blocks.appendleft(taken[:, samples:])
        return taken[:, :samples]


def _with_room(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], sample_rate: int, config: ModelConfig
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Appends the silence that makes resampling there and back give no fewer samples than went in."""
    for block in blocks:
        yield block
    yield np.zeros((len(block), math.ceil(sample_rate / config.sample_rate)), np.float32)


def _check_whole(name: str, value: Any, most: int | None = None) -> None:
    if not isinstance(value, numbers.Real) or value < 1 or value % 1:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least 1")
    if most is not None and value > most:
        raise InputError(f"{name} is {value!r}, expected at most {most}")
