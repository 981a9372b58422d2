"""Separates a stream of any length: blocks of mixture come in, blocks of stems go out.

`separate_blocks` resamples the blocks to the model's rate, gives them the model's channels, cuts them into overlapping
chunks and separates those. It overlap-adds the estimates, brings them back to the mixture's channels and rate, and
yields them as blocks of stems. Every stage is a generator that holds no more than a few chunks.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from wroformer_jax.config.checks import check_whole_number
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
    on_this_device,
    whole_hops,
)
from wroformer_jax.separation.overlap_add import gather, in_chunks
from wroformer_jax.stems import INSTRUMENTAL, VOCALS

# More than anybody separates at once. Far larger sizes overflow, with errors that do not mention memory.
LONGEST_CHUNK = 24 * 3600  # seconds
LARGEST_BATCH = 1 << 16  # chunks


def stem_names(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of the stems that `separate` returns.

    These are the model's stems. If the model has one stem only, the rest of the mixture follows: 'instrumental', or
    'vocals' if the stem itself is the instrumental.
    """
    stem, *others = config.stems
    if others:
        return config.stems
    return stem, VOCALS if stem == INSTRUMENTAL else INSTRUMENTAL


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
    """Separates a stream: takes blocks of mixture and yields blocks of stems as soon as they are finished.

    The blocks of stems have other lengths than the blocks of mixture, but the same total length. Memory holds a few
    chunks, however long the stream is (the whole stream for `chunk_seconds=None`). Arguments and errors are those of
    `separate`.

    Args:
      blocks: the mixture as float32 arrays (channels, samples) of any length. Other arguments are as for `separate`.

    Yields:
      By name, the next samples of each stem as float32 (channels, samples); the same length for all stems.
    """
    config: ModelConfig = model.config
    check_count("sample_rate", sample_rate)
    check_count("batch_size", batch_size, maximum=LARGEST_BATCH)
    chunk = chunk_samples(config, chunk_seconds, overlap)
    blocks = iter(blocks)
    first = next(blocks, None)
    if first is None:
        return
    channels = len(first)
    # The mixture is kept until its stems are finished: the rest is a difference, and the stems end where it ends.
    waiting = _Queue()
    passing = waiting.recording(itertools.chain([first], blocks))
    if sample_rate != config.sample_rate:
        passing = resample_blocks(_with_silence(passing, sample_rate, config), sample_rate, config.sample_rate)
    apply = apply_model if chunk else apply_model_to_whole
    model = on_this_device(model)
    run = model_runner(functools.partial(apply, model, jax.device_put(params)), config, channels=channels, tta=tta)
    if chunk is None:
        estimates = in_one_pass(passing, run, config)
    else:
        estimates = in_chunks(passing, run, chunk=chunk, step=chunk // overlap, batch_size=batch_size)
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
    """Returns the length of a chunk in samples at the model's rate, rounded up to whole hops.

    Args:
      config: the model's settings.
      chunk_seconds: length of a chunk in seconds; None, which is returned, for the whole recording in one pass.
      overlap: number of chunks that each sample lies in.

    Raises:
      InputError: the chunk is shorter than an STFT window or longer than a day, or `overlap` is not a whole number
        of at least 1.
    """
    check_count("overlap", overlap)
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


def check_count(name: str, value: Any, maximum: float = math.inf) -> None:
    """Raises an InputError unless `value` is a whole number from 1 to `maximum`; 2.0 and NumPy's numbers pass."""
    if isinstance(value, float | np.integer | np.floating) and value % 1 == 0:
        value = int(value)
    check_whole_number(name, value, minimum=1)
    if value > maximum:
        raise InputError(f"{name} is {value!r}, expected at most {maximum}")


class _Queue:
    """Keeps the samples of blocks that pass by until they are taken."""

    def __init__(self) -> None:
        self._blocks: collections.deque[np.ndarray] = collections.deque()

    def recording(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the blocks and keeps them."""
        for block in blocks:
            self._blocks.append(block)
            yield block

    def take(self, samples: int) -> Float32[np.ndarray, "channel _"]:
        """Removes and returns the oldest samples, at most that many."""
        taken = gather((self._blocks.popleft() for _ in range(len(self._blocks))), samples)
        self._blocks.appendleft(taken[:, samples:])
        return taken[:, :samples]


def _with_silence(
    blocks: Iterable[Float32[np.ndarray, "channel _"]], sample_rate: int, config: ModelConfig
) -> Iterator[Float32[np.ndarray, "channel _"]]:
    """Appends silence, so that resampling to the model's rate and back returns no fewer samples than went in."""
    channels = 0
    for block in blocks:
        channels = len(block)
        yield block
    yield np.zeros((channels, math.ceil(sample_rate / config.sample_rate)), np.float32)
