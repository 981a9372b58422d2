"""Models for the tests of separation: one with a known result and a tiny real one; sounds; a disk that is full."""

import contextlib
import dataclasses
import functools
import resource
import signal

import jax.numpy as jnp
import numpy as np

from wroformer_jax.config.model import ModelConfig

SMALL_STFT = ModelConfig(stft_n_fft=64, stft_hop_length=16, stft_win_length=64, sample_rate=1000, num_bands=4)


class GainModel:
    """Stands in for a model: each stem is the mixture times a gain.

    Returns whole hops only, as the real model does, and records the shapes for which it is compiled. With `ramp` the
    gain also grows along a chunk, so that the result shows how chunks were put together.
    """

    def __init__(self, *, ramp: bool = False, **config) -> None:
        self.config = dataclasses.replace(SMALL_STFT, **config)
        self.ramp = ramp
        self.traced_shapes = []

    def apply(self, variables, audio):
        self.traced_shapes.append(audio.shape)
        hop, samples = self.config.stft_hop_length, audio.shape[-1]
        assert audio.shape[1] == self.config.channels
        assert samples >= self.config.min_samples
        audio = audio[..., : samples // hop * hop]
        if self.ramp:
            audio = audio * jnp.linspace(0, 1, audio.shape[-1])
        return audio[:, None] * variables["params"]["gains"]

    def params(self, *gains: float):
        """Returns parameters with one gain for each stem, 1 by default."""
        return {"gains": np.asarray(gains or [1.0] * self.config.num_stems, np.float32)[:, None, None]}


class TracedModel:
    """A real model that records the shapes for which it is compiled."""

    def __init__(self, model) -> None:
        self.config = model.config
        self.model = model
        self.traced_shapes = []

    def apply(self, variables, audio):
        self.traced_shapes.append(audio.shape)
        return self.model.apply(variables, audio)


@functools.cache
def tiny_real_model():
    """Returns a RoFormer at 8 kHz and its random parameters."""
    from wroformer_jax.model.params import init_params
    from wroformer_jax.model.roformer import RoFormer

    model = RoFormer(
        ModelConfig(
            num_bands=4,
            sample_rate=8000,
            stft_n_fft=256,
            stft_win_length=256,
            stft_hop_length=80,
            dim=8,
            depth=1,
            heads=1,
            dim_head=8,
            dim_feed_forward=16,
            mask_layers=1,
            dim_mask=16,
            num_sinks=2,
        )
    )
    return model, init_params(model, 0)


def noise(channels: int, samples: int, seed: int = 0, peak: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-peak, peak, (channels, samples)).astype(np.float32)


def tone(channels: int, samples: int, sample_rate: int, hertz: float = 440.0) -> np.ndarray:
    """Returns a sine that fades in and out, so that its ends are quiet when it is resampled."""
    t = np.arange(samples) / sample_rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * t) * np.sin(np.pi * (t + 0.5 / sample_rate) * sample_rate / samples)
    return np.stack([wave * (1 - 0.3 * c) for c in range(channels)]).astype(np.float32)


@contextlib.contextmanager
def limited_file_size(size: int = 200_000):
    """Makes writes past `size` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
