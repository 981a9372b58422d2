"""Estimates the least time of a step by the roofline model (Williams, Waterman and Patterson, CACM 52 (4), 2009).

The estimate divides the operations and bytes of a step by the peak rates of data sheets. It serves to compare plans and
to find the bottleneck. Nothing of it is measured; real steps take longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.model.flops import forward_flops, num_frames, score_entries
from wroformer_jax.parallel.hardware import Hardware

_FLOAT32 = 4  # bytes
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The work of a step on one device, and the seconds that each part of it takes at peak rates."""

    flops: float  # of matrix products, including those that remat computes again
    hbm_bytes: float  # moved between the device's memory and its cores
    sent_bytes: float  # to other devices
    compute_seconds: float
    memory_seconds: float
    network_seconds: float

    @property
    def overlapped(self) -> float:
        """Seconds if computing, moving and sending overlap perfectly: the time of the slowest."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

    @property
    def serial(self) -> float:
        """Seconds if nothing overlaps."""
        return self.compute_seconds + self.memory_seconds + self.network_seconds

    @property
    def bound(self) -> str:
        """The bottleneck: "compute", "memory" or "network"."""
        parts = {"compute": self.compute_seconds, "memory": self.memory_seconds, "network": self.network_seconds}
        return max(parts, key=lambda name: parts[name])


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations and bytes of a step. Works can be added."""

    bfloat16_flops: float = 0.0  # on all devices together
    float32_flops: float = 0.0  # on all devices together
    activation_bytes: float = 0.0  # on all devices together
    parameter_bytes: float = 0.0  # on each device

    @property
    def flops(self) -> float:
        """FLOPs of both precisions."""
        return self.bfloat16_flops + self.float32_flops

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def estimate_times(work: Work, sent_bytes: float, device: Hardware, num_devices: int) -> Roofline:
    """Returns the work and times of a step on one of the devices that share it evenly.

    Args:
      work: of all devices together.
      sent_bytes: by each device, see `hlo.Collective`.
      device: its peak rates.
      num_devices: number of devices that share the work.
    """
    flops, hbm_bytes = work.flops / num_devices, work.activation_bytes / num_devices + work.parameter_bytes
    return Roofline(
        flops=flops,
        hbm_bytes=hbm_bytes,
        sent_bytes=sent_bytes,
        compute_seconds=(work.bfloat16_flops / device.bfloat16 + work.float32_flops / device.float32) / num_devices,
        memory_seconds=hbm_bytes / device.hbm_bandwidth,
        network_seconds=sent_bytes / device.links,
    )


def forward_work(
    config: ModelConfig, samples: int, examples: int, num_parameters: int, passes: Mapping[str, int] | None = None
) -> Work:
    """Returns the work of the forward passes of a batch.

    Args:
      config: the settings of the model.
      samples: length of an example.
      examples: number of them in the batch.
      num_parameters: number of parameters that each device reads in a pass.
      passes: number of passes by part of the model (see `training_passes`); one by default.
    """
    frames = num_frames(config, samples)
    parts = forward_flops(config, frames)
    once = sum(parts.values())
    flops = sum(flops * (passes[name] if passes else 1) for name, flops in parts.items())
    return Work(
        **{f"{config.dtype}_flops": float(examples * flops)},
        activation_bytes=examples * activation_bytes(config, frames) * flops / once,
        parameter_bytes=_FLOAT32 * num_parameters * flops / once,
    )


def training_passes(config: ModelConfig, samples: int) -> dict[str, int]:
    """Returns how many forward passes a training step costs, for each part of the model in `flops.forward_flops`.

    A step has the forward pass, a backward pass with twice its products, and whatever is computed again: blocks, if
    remat keeps nothing of them; blocks once more, if it keeps only every few of them; and all that is worked on in
    pieces. Blocks that are both computed again and in pieces need their time attention twice and the rest of them once,
    since only the pieces of the rest need its results.

    Args:
      config: the settings of the model.
      samples: length of an example.
    """
    places = (num_frames(config, samples) + config.num_sinks) * config.num_bands
    at_once = config.places_at_once or places  # None, where nobody has chosen for a device: all
    in_pieces, ends_in_pieces = at_once < places, at_once < places
    if config.frames_at_once:
        ends_in_pieces = config.frames_at_once < num_frames(config, samples)
    by_blocks = config.remat in ("block", "offload")
    kept_rarely = config.blocks_per_save > 1
    attention = ("time_projections", "time_scores")
    passes = dict.fromkeys(forward_flops(config, 1), 3 + (by_blocks or in_pieces) + kept_rarely)
    passes |= dict.fromkeys(attention, 3 + by_blocks + in_pieces + kept_rarely)
    return passes | dict.fromkeys(("band_split", "masks"), 3 + ends_in_pieces)


def activation_bytes(config: ModelConfig, frames: int) -> int:
    """Returns the bytes that a forward pass of one example moves to and from memory.

    Each matrix product reads its inputs and writes its results. Scores of the softmax stay on the chip unless the time
    mixer is "naive". The residual stream is float32. STFT and losses are not counted, as in `flops.forward_flops`.
    """
    item, inner = _BYTES[config.dtype], config.heads * config.dim_head
    places = config.depth * (frames + config.num_sinks) * config.num_bands
    layers = config.time_transformer_depth + config.freq_transformer_depth
    # Norms read the stream, results are added to it (a read and a write), in attention and feed-forward.
    stream = 2 * 3 * _FLOAT32 * config.dim
    # Queries, keys, values (3) and attended values (1) are written and read; so is the hidden layer.
    inside = 2 * item * (4 * inner + config.dim_feed_forward)
    scores = 0
    if config.time_mixer == "naive":  # scores and their softmax are written and read
        maps = config.depth * config.time_transformer_depth * config.num_bands * config.heads
        scores = 4 * _FLOAT32 * maps * score_entries(config, frames)
    hidden = _FLOAT32 * config.dim + 2 * item * (config.mask_layers - 1) * config.dim_mask
    ends = frames * config.num_bands * (_FLOAT32 * config.dim + config.num_stems * hidden)
    return layers * places * (stream + inside) + scores + ends
