"""Separates a recording that is an array in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float32

from wroformer_jax.errors import InputError
from wroformer_jax.io.audio import BLOCK_SAMPLES
from wroformer_jax.separation.forward import Params
from wroformer_jax.separation.progress import with_progress
from wroformer_jax.separation.stream import separate_blocks, stem_names


def separate(
    model: Any,
    params: Params,
    mixture: np.ndarray,
    *,
    sample_rate: int,
    chunk_seconds: float | None = 8.0,
    overlap: int = 2,
    batch_size: int = 1,
    progress: bool = False,
    tta: bool = False,
) -> dict[str, np.ndarray]:
    """Separates a recording into its stems.

    A stereo model gets a mono mixture as two equal channels, and the stems are averaged back to mono. A mono model
    gets the channels of a stereo mixture one after the other. If the mixture has another sample rate than the model,
    the mixture is resampled to the model's rate and the stems are resampled back.

    Args:
      model: the model that `load` returned, or any object with its `config` and `apply`.
      params: the parameters that `load` returned.
      mixture: (channels, samples), 1 or 2 channels, floating point.
      sample_rate: sample rate of the mixture and of the stems in Hz.
      chunk_seconds: length of a chunk in seconds, rounded up to whole hops; None to separate the whole recording in
        one pass.
      overlap: number of chunks that each sample lies in.
      batch_size: number of chunks that the model separates at a time.
      progress: whether to show a progress bar on stderr.
      tta: whether to use test-time augmentation: average the estimates for the mixture, for its negative, and (stereo)
        for its channels swapped. Takes three times as long.

    Returns:
      By name, each stem of the model as float32 (channels, samples), as long as the mixture. If the model has one
      stem only, also the rest, mixture - stem, under the name 'instrumental' (see `stem_names`).

    Raises:
      InputError: the mixture or a setting cannot be used, the memory is too small, or the model's output is not
        finite.
    """
    mixture = _checked_mixture(mixture)
    samples = mixture.shape[1]
    blocks = (mixture[:, i : i + BLOCK_SAMPLES] for i in range(0, samples, BLOCK_SAMPLES))
    separated = separate_blocks(
        model,
        params,
        blocks,
        sample_rate=sample_rate,
        chunk_seconds=chunk_seconds,
        overlap=overlap,
        batch_size=batch_size,
        tta=tta,
    )
    if progress:
        separated = with_progress(separated, samples=samples, sample_rate=sample_rate, label="separate")
    return _joined(separated, {name: np.empty_like(mixture) for name in stem_names(model.config)})


def _joined(blocks: Iterable[dict[str, np.ndarray]], stems: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fills the arrays of `stems` with blocks of stems, one after the other, and returns them."""
    done = 0
    for block in blocks:
        length = next(iter(block.values())).shape[1]
        for name, estimate in block.items():
            stems[name][:, done : done + length] = estimate
        done += length
    return stems


def _checked_mixture(mixture: np.ndarray) -> Float32[np.ndarray, "channel sample"]:
    mixture = np.asarray(mixture)
    if mixture.ndim != 2 or mixture.shape[0] not in (1, 2):
        raise InputError(f"mixture has the shape {mixture.shape}, expected (channels, samples) with 1 or 2 channels")
    if mixture.shape[1] == 0:
        raise InputError("mixture has no samples: there is nothing to separate")
    if not np.issubdtype(mixture.dtype, np.floating):
        raise InputError(f"mixture is {mixture.dtype}, expected floating point with full scale 1")
    if not np.isfinite(mixture).all():
        raise InputError("mixture has NaN or infinite samples")
    return mixture.astype(np.float32, copy=False)
