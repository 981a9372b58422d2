"""Small things that several test files need."""

import os
import socket
from pathlib import Path

import numpy as np

from wroformer_jax.config.model import ModelConfig

TINY = {
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "dim_feed_forward": 64,
    "dim_mask": 64,
}


def tiny_config(**fields):
    """A config whose models compile and run in seconds."""
    return ModelConfig(**{**TINY, **fields})


def music(rng, batch, channels, samples):
    """Noise with a slow envelope, digital silence in its first sixth."""
    t = np.arange(samples) / 44100
    audio = rng.standard_normal((batch, channels, samples)) * (0.3 + 0.2 * np.sin(2 * np.pi * 3 * t))
    audio[..., : samples // 6] = 0
    return audio.astype(np.float32)


def relative_error(actual, expected):
    """Largest difference as a fraction of the reference's largest absolute value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def free_port():
    """A port of this machine on which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def of_a_program():
    """The environment of a program of this project that computes on CPU devices."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
