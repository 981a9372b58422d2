"""Separates recordings that are arrays."""

from __future__ import annotations

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

    A mono mixture given to a stereo model is separated as two equal channels and averaged back; a stereo mixture
    given to a mono model is separated a channel at a time. A mixture at another rate than the model's is resampled
    on the way in and out.

    Args:
      model: what `load` returned first (any object with `config` and `apply`).
      params: what `load` returned second.
      mixture: (channels, samples), 1 or 2 channels, floating point.
      sample_rate: of the mixture and of the stems, in Hz.
      chunk_seconds: length of what the model hears at once, in seconds, rounded up to whole hops; None for
        the whole recording in one pass.
      overlap: chunks that each sample lies in.
      batch_size: chunks that are separated at a time.
      progress: shows a bar on stderr.
      tta: test-time augmentation: averages the estimates for the mixture, for its negative and (stereo) for its
        channels swapped; three times the work.

    Returns:
      For each stem of the model float32 (channels, samples), as long as the mixture. For a model of one stem also
      the rest of the mixture, mixture - stem, under the name 'instrumental' (see `stem_names`).

    Raises:
      InputError: the mixture or a setting cannot be used, there is too little memory, or the model's output is
        not finite.
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
    stems = {name: np.empty_like(mixture) for name in stem_names(model.config)}
    done = 0
    for block in separated:
        for name, estimate in block.items():
            stems[name][:, done : done + estimate.shape[1]] = estimate
        done += estimate.shape[1]
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
