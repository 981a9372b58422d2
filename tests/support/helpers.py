"""Helpers that many test files use."""

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
    """Returns a config whose models compile and run in seconds."""
    return ModelConfig(**{**TINY, **fields})


def music(rng, batch, channels, samples):
    """Returns noise (batch, channel, sample) with a slow envelope; the first sixth is digital silence."""
    t = np.arange(samples) / 44100
    audio = rng.standard_normal((batch, channels, samples)) * (0.3 + 0.2 * np.sin(2 * np.pi * 3 * t))
    audio[..., : samples // 6] = 0
    return audio.astype(np.float32)


def relative_error(actual, expected):
    """Returns the largest difference, divided by the largest absolute value of the expected array."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def free_port():
    """Returns a local port on which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def of_a_program():
    """Returns the environment for a child process that imports this project and computes on CPU devices."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
