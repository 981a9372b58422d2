"""Runs the forward pass with time cut over devices."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.implementations import has_kernels, settled
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.context_parallel import cut_time, padded_samples
from wroformer_jax.parallel.mesh import devices_mesh, num_time_parts
from wroformer_jax.parallel.sharding import batch_shardings, gathered, replicated
from wroformer_jax.parallel.time_axis import TimeAxis

Params = Mapping[str, Any]


class OverDevices(NamedTuple):
    """The forward pass on a mesh."""

    function: jax.stages.Wrapped  # jitted: (parameters, audio (batch, channel, sample)) to stems
    time: TimeAxis  # how time is cut; the audio must be padded to `padded_samples`


@functools.lru_cache(8)
def spread_forward(config: ModelConfig, mesh: Mesh, samples: int) -> OverDevices:
    """Returns the forward pass with examples and time spread over a mesh.

    Args:
      config: the settings of the model.
      mesh: the devices.
      samples: length of the audio in samples.

    Raises:
      InputError: time cannot be cut into that many parts.
    """
    config = settled(config, mesh.devices.flat[0].platform)
    time = cut_time(config, samples, num_time_parts(mesh))
    model = RoFormer(config, time)

    def apply(params: Params, audio: Array) -> Any:
        return model.apply({"params": params}, audio)

    specs = {name: sharding.spec for name, sharding in batch_shardings(mesh).items()}
    if not time.is_whole or (
        has_kernels(config) and mesh.size > 1
    ):  # XLA cannot spread a kernel over devices by itself
        given = PartitionSpec(), specs["mixture"]
        apply = jax.shard_map(apply, mesh=mesh, in_specs=given, out_specs=specs["targets"], check_vma=False)
    out = batch_shardings(mesh)["targets"]

    def plan_forward(params: Params, audio: Array) -> Array:  # `wroformer plan` finds it by this name
        return apply(gathered(params, mesh), audio)

    return OverDevices(jax.jit(plan_forward, out_shardings=out), time)


def separate_over_devices(
    model: RoFormer, params: Params, audio: Float[np.ndarray, "batch channel sample"]
) -> Float[np.ndarray, "batch stem channel out_sample"]:
    """Runs `model.apply` with time cut over all devices of this process.

    Args:
      model: a model with windowed sink attention.
      params: its parameters; each device gets a copy.
      audio: mixtures.

    Returns:
      The stems, with hop * (samples // hop) samples.

    Raises:
      InputError: the audio is too short for so many devices.
    """
    samples, hop = audio.shape[-1], model.config.stft_hop_length
    mesh = devices_mesh(jax.local_devices())
    function, time = spread_forward(model.config, mesh, samples)
    padded = np.pad(audio, [(0, 0), (0, 0), (0, padded_samples(time, samples) - samples)])
    # The host cuts the audio. If the devices cut it, each would first get all of it.
    return np.asarray(function(jax.device_put(params, replicated(mesh)), padded))[..., : samples // hop * hop]
