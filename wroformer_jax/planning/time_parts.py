"""Sums the times of a program's operations (tpu_time.py) by part of the model, and holds them against the peak rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.flops import forward_flops, num_frames
from wroformer_jax.planning.parts import PARTS, is_backward
from wroformer_jax.planning.tpu_time import Operation

_PART_OF_FLOPS = {"time_projections": "time_attention", "freq_projections": "freq_attention"}
_FORWARD_AND_BACKWARD = 3  # passes that train: the gradients of products take twice the products
_LARGEST = 60  # operations that are listed one by one


@dataclasses.dataclass(frozen=True)
class PartTime:
    """The time of a part on one device, in seconds, and its useful work."""

    estimated: float  # by the compiler
    scheduled: float
    backward_estimated: float  # of them in the backward pass, with what remat computes again
    backward_scheduled: float
    bounds: Mapping[str, float]  # scheduled seconds by what takes longest in each operation, see `Operation.bound`
    flops: float  # of the model's products, without what is computed again or padded; 0 for a part without products

    @property
    def bound(self) -> str:
        """What most of the scheduled time is bound by, "" if there is none."""
        return max(self.bounds, key=lambda name: self.bounds[name], default="")


@dataclasses.dataclass(frozen=True)
class TimeCount:
    """The time of a program on one device by part."""

    parts: Mapping[str, PartTime]  # by the names of parts.PARTS, in their order
    peak: float  # FLOP/s of the device's bfloat16 products
    largest: Sequence[Operation]  # that take longest by the compiler's estimate
    num_operations: int
    is_exact: bool  # False if a loop's number of turns is not known; such a loop counts once

    @property
    def whole(self) -> PartTime:
        """The sums over all parts."""
        parts = list(self.parts.values())
        sums = {
            name: sum(getattr(part, name) for part in parts)
            for name in ("estimated", "scheduled", "backward_estimated", "backward_scheduled", "flops")
        }
        bounds = {name: sum(part.bounds.get(name, 0.0) for part in parts) for part in parts for name in part.bounds}
        return PartTime(**sums, bounds=bounds)

    def share(self, flops: float, seconds: float) -> float | None:
        """Returns FLOPs in seconds as a fraction of the peak rate; None without either."""
        return flops / seconds / self.peak if flops and seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the times in plain JSON types."""

        def described(part: PartTime) -> dict[str, Any]:
            shares = {
                "estimated_share_of_peak": self.share(part.flops, part.estimated),
                "scheduled_share_of_peak": self.share(part.flops, part.scheduled),
            }
            return {**dataclasses.asdict(part), **shares}

        return {
            "parts": {name: described(part) for name, part in self.parts.items()},
            "whole": described(self.whole),
            "peak_flops": self.peak,
            "is_exact": self.is_exact,
            "num_operations": self.num_operations,
            "largest_operations": [
                {**dataclasses.asdict(one), "estimated": one.estimated, "scheduled": one.scheduled, "bound": one.bound}
                for one in self.largest
            ],
        }


def time_count(operations: Sequence[Operation], network: float, flops: Mapping[str, float], peak: float) -> TimeCount:
    """Returns the times by part.

    Args:
      operations: of the program.
      network: seconds in which a device sends what it sends to others.
      flops: useful work of a device by part, see `useful_flops`.
      peak: FLOP/s of the device's bfloat16 products.
    """
    found: dict[str, list[Operation]] = {name: [] for name in PARTS}
    for one in operations:
        found[one.part].append(one)
    parts = {name: _part_time(some, flops.get(name, 0.0)) for name, some in found.items() if some}
    if network:
        parts["collectives"] = PartTime(network, network, 0.0, 0.0, {"network": network}, 0.0)
    largest = sorted(operations, key=lambda one: -one.executions * one.estimated)[:_LARGEST]
    ordered = {name: parts[name] for name in PARTS if name in parts}
    return TimeCount(ordered, peak, largest, len(operations), all(one.is_exact for one in operations))


def useful_flops(config: TrainingConfig, teacher: ModelConfig | None, *, inference: bool) -> dict[str, float]:
    """Returns the FLOPs of the model's products in a run of the program on all devices, by part.

    Products that remat computes again are not counted.

    Args:
      config: the settings of the run, with its batch size.
      teacher: the settings of its teacher.
      inference: of a forward pass.
    """
    samples = config.crop_samples
    passes = 1 if inference else _FORWARD_AND_BACKWARD
    forward = forward_flops(config.model, num_frames(config.model, samples))
    found = {
        _PART_OF_FLOPS.get(name, name): float(config.batch_size * passes * count) for name, count in forward.items()
    }
    if teacher is not None:
        window = min(config.teacher_samples, samples)
        of_window = sum(forward_flops(teacher, num_frames(teacher, window)).values())
        found["teacher"] = float(config.batch_size * (samples // window) * of_window)
    return found


def _part_time(operations: Sequence[Operation], flops: float) -> PartTime:
    def seconds(which: str, *, backward: bool) -> float:
        some = (one for one in operations if is_backward(one.source) or not backward)
        return sum((one.executions * getattr(one, which) for one in some), 0.0)

    bounds: dict[str, float] = {}
    for one in operations:
        bounds[one.bound] = bounds.get(one.bound, 0.0) + one.executions * one.scheduled
    return PartTime(
        estimated=seconds("estimated", backward=False),
        scheduled=seconds("scheduled", backward=False),
        backward_estimated=seconds("estimated", backward=True),
        backward_scheduled=seconds("scheduled", backward=True),
        bounds=bounds,
        flops=flops,
    )
