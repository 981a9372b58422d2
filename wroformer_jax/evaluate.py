"""Validation: whole unseen songs through the model, in one pass each, and their SDR."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from wroformer_jax.data.batches import SongPool
from wroformer_jax.metrics import mean_defined, usdr
from wroformer_jax.model import RoFormer


def validate(model: RoFormer, params: Any, songs: SongPool) -> dict[str, float]:
    """Mean uSDR of the vocals over the songs, in dB.

    Returns:
      "vocals_usdr" of the estimates, "mixture_usdr" of the mixtures taken as estimates (what doing nothing gives),
      and "improvement", their difference; NaN if the vocals of every song are silent.
    """
    mixtures = songs.vocals + songs.instrumental
    estimated = [
        usdr(vocals, separate_song(model, params, mixture))
        for vocals, mixture in zip(songs.vocals, mixtures, strict=True)
    ]
    vocals_usdr = mean_defined(estimated)
    mixture_usdr = mean_defined(map(usdr, songs.vocals, mixtures))
    return {
        "vocals_usdr": vocals_usdr,
        "mixture_usdr": mixture_usdr,
        "improvement": vocals_usdr - mixture_usdr,
    }


def separate_song(
    model: RoFormer, params: Any, mixture: Float32[np.ndarray, "channel sample"]
) -> Float32[np.ndarray, "channel sample"]:
    """The model's first stem of a song that fits in memory, of the song's own length."""
    samples = mixture.shape[1]
    missing = -samples % model.config.stft_hop_length
    padded = np.pad(mixture, ((0, 0), (0, missing)))
    return np.asarray(_first_stem(model, params, padded[None]))[0, :, :samples]


@functools.partial(jax.jit, static_argnums=0)
def _first_stem(
    model: RoFormer, params: Any, mixtures: Float[Array, "batch channel sample"]
) -> Float[Array, "batch channel sample"]:
    return model.apply({"params": params}, mixtures)[:, 0]
