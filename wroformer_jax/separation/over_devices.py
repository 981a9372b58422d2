"""The forward pass with time cut over devices."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.layers import Params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.context_parallel import cut_time, padded_samples
from wroformer_jax.parallel.mesh import devices_mesh, num_time_parts
from wroformer_jax.parallel.sharding import batch_shardings, gathered, replicated
from wroformer_jax.parallel.time_axis import TimeAxis


class OverDevices(NamedTuple):
    """A model on a mesh."""

    function: jax.stages.Wrapped  # (parameters, audio (batch, channel, sample)) to stems, jitted
    time: TimeAxis  # how the audio's time is cut: it is padded to `padded_samples`


@functools.lru_cache(8)
def over_devices(config: ModelConfig, mesh: Mesh, samples: int) -> OverDevices:
    """The forward pass, its examples and their time spread over a mesh.

    Args:
      config: the settings of the model.
      mesh: the devices.
      samples: of the audio.

    Raises:
      InputError: time cannot be cut so.
    """
    time = cut_time(config, samples, num_time_parts(mesh))
    model = RoFormer(config, time)

    def apply(params: Params, audio: Array) -> Array:
        return model.apply({"params": params}, audio)

    specs = {name: sharding.spec for name, sharding in batch_shardings(mesh).items()}
    if not time.is_whole:
        given = PartitionSpec(), specs["mixture"]
        apply = jax.shard_map(apply, mesh=mesh, in_specs=given, out_specs=specs["targets"], check_vma=False)
    out = batch_shardings(mesh)["targets"]

    def plan_forward(params: Params, audio: Array) -> Array:  # `wroformer plan` knows it by this name
        return apply(gathered(params, mesh), audio)

    return OverDevices(jax.jit(plan_forward, out_shardings=out), time)


def separate_over_devices(
    model: RoFormer, params: Params, audio: Float[np.ndarray, "batch channel sample"]
) -> Float[np.ndarray, "batch stem channel out_sample"]:
    """`model.apply`, with time cut over all devices of this process.

    Args:
      model: with windowed sink attention.
      params: its parameters; each device gets all of them.
      audio: mixtures.

    Raises:
      InputError: the audio is too short to be cut.
    """
    samples, hop = audio.shape[-1], model.config.stft_hop_length
    mesh = devices_mesh(jax.local_devices())
    function, time = over_devices(model.config, mesh, samples)
    padded = np.pad(audio, [(0, 0), (0, 0), (0, padded_samples(time, samples) - samples)])
    # Cut on the host: to cut it on the devices, each would be given all of it.
    return np.asarray(function(jax.device_put(params, replicated(mesh)), padded))[..., : samples // hop * hop]
