"""Which form of attention, and how much work at a time, suits a device.

The forms compute the same numbers. The scan form (attention.py) is the reference: it runs everywhere, and tests hold
all others to it. The TPU's form (lanes.py) keeps heads side by side on the last axis and uses Pallas kernels. The
GPU's form (gpu.py) uses cuDNN. What is new to a device is compared with the scan form there first (trial.py).
"""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.gpu import cudnn_serves
from wroformer_jax.model.lanes import LANE_IMPLS, kernels_serve

# Frames x bands that are worked on at a time on a TPU. The largest arrays of a piece, queries, keys and values and the
# hidden layer of the feed-forward, then stay in VMEM (128 MiB on v5e, and on v6e).
TPU_PLACES = 4992
# STFT frames at a time in the mask estimator, which has most of a model's weights: it reads them once for each piece.
TPU_FRAMES = 1024

_FAST = {"tpu": "pallas", "gpu": "cudnn"}  # the form for a kind of device, if it serves the model

_log = logging.getLogger("wroformer")


def settled(config: ModelConfig, platform: str | None = None) -> ModelConfig:
    """Returns the settings with everything decided that depends on the device.

    Args:
      config: the settings. An `attention_impl` of "auto" is replaced, and None for `places_at_once` and
        `frames_at_once`.
      platform: "cpu", "gpu" or "tpu", as `jax.Device.platform` has it; that of JAX's default device if None.

    Raises:
      InputError: an `attention_impl` was asked for that the device does not have, or that does not serve the model.
    """
    if platform is None:
        if config.attention_impl != "auto" and None not in (config.places_at_once, config.frames_at_once):
            return config  # settled already, maybe for devices that JAX does not have
        platform = jax.default_backend()
    platform = _known(platform)
    impl = _implementation(config, platform)
    places, frames = config.places_at_once, config.frames_at_once
    in_vmem = places is None and platform == "tpu" and impl == "pallas" and config.remat != "dots"
    if places is None:
        places = TPU_PLACES if in_vmem else 0
    if frames is None:
        frames = TPU_FRAMES if in_vmem else 0
    return dataclasses.replace(config, attention_impl=impl, places_at_once=places, frames_at_once=frames)


def has_kernels(*configs: ModelConfig | None) -> bool:
    """Whether settings, once settled, name a form that is not made of XLA's own operations."""
    return any(config is not None and config.attention_impl != "scan" for config in configs)


def _implementation(config: ModelConfig, platform: str) -> str:
    impl = config.attention_impl
    if impl == "auto":
        impl = _FAST.get(platform, "scan")
        if (reason := _not_served(config, impl)) is None:
            return impl
        _say_once(reason)
        return "scan"
    needed = next((fast for fast, form in _FAST.items() if form == impl), platform)
    if platform != needed:
        raise InputError(
            f"attention_impl is {impl!r}, which needs a {needed.upper()}, but the device is a {platform.upper()}: "
            "use 'auto', which takes what suits the device"
        )
    if (reason := _not_served(config, impl)) is not None:
        raise InputError(f"attention_impl is {impl!r}, but {reason}: use 'auto' or 'scan'")
    return impl


@functools.cache
def _say_once(reason: str) -> None:
    _log.info("attention is computed by jax.lax.scan, since %s", reason)


def _not_served(config: ModelConfig, impl: str) -> str | None:
    """Returns None if a form serves a model, else a sentence with what it does not serve."""
    if impl in LANE_IMPLS and (what := kernels_serve(config)) is not None:
        return f"the kernels do not serve {what}"
    if impl == "cudnn" and (what := cudnn_serves(config)) is not None:
        return f"cuDNN does not serve {what}"
    return None


def _known(platform: str) -> str:
    """JAX names the platform of GPUs after their makers where it must tell them apart."""
    return "gpu" if platform in ("cuda", "rocm") else platform
