"""A model's parameters: how they are initialised, their shapes and axes, and how windowed sinks are added."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import PartitionSpec
from jaxtyping import Array

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.bands import band_layout
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import SINK_STD, RoFormer


def init_params(model: RoFormer, seed: int) -> Params:
    """Returns random parameters, distributed as torch initialises its layers: a nested dict of float32 arrays.

    Args:
      model: the model.
      seed: seed of the random numbers. The same seed gives the same parameters on any number of devices.
    """
    return _initial_params(model, jax.random.key(seed, impl="threefry2x32"))  # "rbg" would depend on the sharding


@functools.partial(jax.jit, static_argnums=0)
def _initial_params(model: RoFormer, key: Array) -> Params:
    # Under jit the forward pass that `init` traces is dead code, so that only the parameters are computed.
    return meta.unbox(_init(model, key))


def abstract_params(model: RoFormer) -> Params:
    """Returns the parameters' shapes and dtypes, a nested dict of `jax.ShapeDtypeStruct`, without computing them."""
    return meta.unbox(jax.eval_shape(lambda: _init(model, jax.random.key(0))))


def logical_axes(model: RoFormer) -> Params:
    """Returns the names of each parameter's axes, a nested dict of `jax.sharding.PartitionSpec`."""
    return nn.get_partition_spec(jax.eval_shape(lambda: _init(model, jax.random.key(0))))


def trainable_mask(params: Params) -> Params:
    """Returns a tree like `params`: False for constants (the rotary frequencies), True for all other leaves."""
    return {name: jax.tree.map(lambda _, name=name: not name.endswith("_rotary"), sub) for name, sub in params.items()}


def num_parameters(config: ModelConfig) -> int:
    """Returns the number of trained parameters; padding of narrow bands and rotary frequencies do not count."""
    model = RoFormer(config)
    params = abstract_params(model)
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda node: isinstance(node, PartitionSpec))
    present = {f"group_{i}": group.present for i, group in enumerate(band_layout(config).groups)}
    total = 0
    for (path, leaf), names, is_trained in zip(
        jax.tree.leaves_with_path(params), axes, jax.tree.leaves(trainable_mask(params)), strict=True
    ):
        group = next((present[entry.key] for entry in path if entry.key in present), None)
        if group is not None and not {"band_feature", "mask_out"}.isdisjoint(names):  # the axes that are padded
            total += leaf.size * int(group.sum()) // group.size
        elif is_trained:
            total += leaf.size
    return total


def _init(model: RoFormer, key: Array) -> Params:
    audio = jnp.zeros((1, model.config.channels, model.config.stft_n_fft))
    return dict(model.init(key, audio, method="plain")["params"])


def add_windowed_sinks(
    config: ModelConfig, params: Params, *, window: int, num_sinks: int, seed: int
) -> tuple[ModelConfig, Params]:
    """Turns a full-attention model into one with windowed sinks. All its weights stay.

    Args:
      config: the full-attention model's config.
      params: its parameters.
      window: number of frames around a frame that it sees, half of them on each side.
      num_sinks: number of new sink tokens, drawn from a normal distribution with standard deviation SINK_STD.
      seed: seed of the drawing.

    Returns:
      The new config, which also zeroes the DC bin, and the new parameters.

    Raises:
      InputError: the model already has windowed attention or sinks, or the seed is negative.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}, expected a whole number of at least 0")
    if config.time_mixer == "windowed_sink" or config.num_sinks:
        raise InputError(
            f"the checkpoint has windowed attention (window {config.window}) or {config.num_sinks} sinks already: "
            "window and sinks can be given for a full-attention model only"
        )
    # Windowed-sink models always zero the DC bin.
    config = dataclasses.replace(config, time_mixer="windowed_sink", window=window, num_sinks=num_sinks, zero_dc=True)
    if num_sinks:
        shape = (num_sinks, config.num_bands, config.dim)
        drawn = np.random.default_rng(seed).normal(0.0, SINK_STD, shape)
        params = {**params, "sink_tokens": drawn.astype(np.float32)}
    return config, params
