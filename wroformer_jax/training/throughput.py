"""How fast a run is, from what a step does and the time it takes; asked of the host alone, so that no step waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.flops import forward_flops, num_frames
from wroformer_jax.parallel.hardware import hardware


class Work(NamedTuple):
    """What a training step does, on all hosts together."""

    audio_seconds: float  # of the mixtures of a batch
    flops: int  # see `flops.step_flops`
    device_kind: str
    num_devices: int


def work_of(config: TrainingConfig, mesh: Mesh, teacher: ModelConfig | None = None) -> Work:
    """What a step of the run does on these devices, with a teacher of these settings if there is one."""
    return Work(
        audio_seconds=config.batch_size * config.crop_samples / config.model.sample_rate,
        flops=step_flops(config, teacher),
        device_kind=mesh.devices.flat[0].device_kind,
        num_devices=mesh.size,
    )


def speed(work: Work, seconds_per_step: float) -> dict[str, float]:
    """What a step's time means: "audio_seconds_per_second", and "mfu" (0 to 1) on devices whose peak is known."""
    utilisation = mfu(work.flops, seconds_per_step, work.device_kind, work.num_devices)
    known = {} if utilisation is None else {"mfu": utilisation}
    return {"audio_seconds_per_second": work.audio_seconds / seconds_per_step, **known}


def memory_in_use(devices: Iterable[jax.Device]) -> dict[str, float]:
    """The most memory that one of the devices has used since the process began: "hbm_gib", in GiB.

    Of devices that tell only what they use now, that; nothing of those that do not tell (CPUs).
    """
    told = [stats for device in devices if (stats := device.memory_stats())]
    used = [stats.get("peak_bytes_in_use", stats.get("bytes_in_use")) for stats in told]
    known = [number for number in used if number is not None]
    return {"hbm_gib": max(known) / 2**30} if known else {}


# A backward pass has two products for each of the forward pass: one for the inputs, one for the weights.
_FORWARD_AND_BACKWARD = 3


def step_flops(config: TrainingConfig, teacher: ModelConfig | None = None) -> int:
    """Model FLOPs of one training step on all devices together: forward and backward passes of a batch.

    What remat computes again is not counted, so that MFU is a measure of progress (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B). Frozen parameters are counted like the others.

    Args:
      config: the settings of the run.
      teacher: the settings of its teacher, whose forward pass over its windows is then added.
    """
    model, samples = config.model, config.crop_samples
    flops = _FORWARD_AND_BACKWARD * sum(forward_flops(model, num_frames(model, samples)).values())
    if teacher is not None:
        window = min(config.teacher_samples, samples)
        flops += samples // window * sum(forward_flops(teacher, num_frames(teacher, window)).values())
    return config.batch_size * flops


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, None for a kind that is not known (a CPU).

    Args:
      device_kind: of `jax.Device`.
    """
    known = hardware(device_kind)
    return None if known is None else known.bfloat16


def mfu(flops: int, seconds: float, device_kind: str, num_devices: int) -> float | None:
    """Model FLOPs utilisation, 0 to 1: against the peak in bfloat16, whatever the model's dtype.

    Args:
      flops: model FLOPs, see `step_flops`.
      seconds: that they took.
      device_kind: of `jax.Device`.
      num_devices: that worked on them.

    Returns:
      None if the peak of the devices is not known.
    """
    peak = peak_flops(device_kind)
    return None if peak is None else flops / (seconds * num_devices * peak)
