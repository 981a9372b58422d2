"""The speed of a run: audio per second, model FLOPs utilisation and memory. Nothing here waits for a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.flops import forward_flops, num_frames
from wroformer_jax.parallel.hardware import known_hardware


class Work(NamedTuple):
    """What a training step computes, on all hosts together."""

    audio_seconds: float  # length of the mixtures of a batch, added up
    flops: int  # see `step_flops`
    device_kind: str
    num_devices: int


def work_of(config: TrainingConfig, mesh: Mesh, teacher: ModelConfig | None = None) -> Work:
    """Returns the work of a step of the run on these devices.

    Args:
      config: the settings of the run.
      mesh: the devices.
      teacher: the settings of the teacher; None without one.
    """
    return Work(
        audio_seconds=config.batch_size * config.crop_samples / config.model.sample_rate,
        flops=step_flops(config, teacher),
        device_kind=mesh.devices.flat[0].device_kind,
        num_devices=mesh.size,
    )


def speed(work: Work, seconds_per_step: float) -> dict[str, float]:
    """Returns "audio_seconds_per_second" and, on devices whose peak is known, "mfu" (0 to 1)."""
    utilisation = mfu(work.flops, seconds_per_step, work.device_kind, work.num_devices)
    known = {} if utilisation is None else {"mfu": utilisation}
    return {"audio_seconds_per_second": work.audio_seconds / seconds_per_step, **known}


def memory_in_use(devices: Iterable[Any]) -> dict[str, float]:
    """Returns "hbm_gib", the most memory in GiB that any of the `jax.Device`s has used since the process began.

    Some devices report only what they use now, which is then taken; CPUs report nothing, so the dict is empty.
    """
    reports = [stats for device in devices if (stats := device.memory_stats())]
    used = [stats.get("peak_bytes_in_use", stats.get("bytes_in_use")) for stats in reports]
    known = [number for number in used if number is not None]
    return {"hbm_gib": max(known) / 2**30} if known else {}


# A backward pass has two products for each one of the forward pass: one for the inputs, one for the weights.
_FORWARD_AND_BACKWARD = 3


def step_flops(config: TrainingConfig, teacher: ModelConfig | None = None) -> int:
    """Returns the model FLOPs of one training step on all devices: forward and backward passes of a batch.

    Recomputation (remat) is not counted, so that MFU measures progress (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B). Frozen parameters are counted like the others.

    Args:
      config: the settings of the run.
      teacher: the settings of its teacher, whose forward pass is added; None without one.
    """
    model, samples = config.model, config.crop_samples
    flops = _FORWARD_AND_BACKWARD * sum(forward_flops(model, num_frames(model, samples)).values())
    if teacher is not None:
        window = min(config.teacher_samples, samples)
        flops += samples // window * sum(forward_flops(teacher, num_frames(teacher, window)).values())
    return config.batch_size * flops


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s of one device, or None for an unknown kind such as a CPU.

    Args:
      device_kind: `device_kind` of a `jax.Device`.
    """
    known = known_hardware(device_kind)
    return None if known is None else known.bfloat16


def mfu(flops: int, seconds: float, device_kind: str, num_devices: int) -> float | None:
    """Returns the model FLOPs utilisation, 0 to 1, relative to the peak in bfloat16 whatever the model's dtype.

    Args:
      flops: model FLOPs, see `step_flops`.
      seconds: the time that they took.
      device_kind: `device_kind` of a `jax.Device`.
      num_devices: number of devices that shared them.

    Returns:
      None if the peak of the devices is unknown.
    """
    peak = peak_flops(device_kind)
    return None if peak is None else flops / (seconds * num_devices * peak)
