"""Counts the time that a compiled program takes on a TPU, operation by operation, without running it.

There are two counts, and the truth lies between them:

* "estimated": the compiler's own estimate, `estimated_cycles` of each operation. It is close for matrix products, and
  up to some times too long for other work, above all in bfloat16 or in VMEM. Kernels (Pallas) have no estimate; their
  scheduled time stands in for it.
* "scheduled": the longest of three times of an operation: of its bundles of instructions, one a cycle (bundles.py); of
  the rows that pass through the busiest matrix unit; and of the bytes that it moves to and from memory (traffic.py) at
  the data sheet's bandwidth. It knows no stalls, so that it is too short.

Asynchronous copies run beside other operations. They count where these do not keep the memory idle for long enough.
Collectives count with the bytes that a device sends over all its links at once, in both counts.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from wroformer_jax.parallel.hardware import Hardware
from wroformer_jax.planning.bundles import Count
from wroformer_jax.planning.hlo import KINDS
from wroformer_jax.planning.hlo_text import BRANCHES, CALLS, Instruction, Module, called_names, parse, trips_of
from wroformer_jax.planning.parts import SOURCE, part_of, source_of
from wroformer_jax.planning.traffic import FREE, moved, transferred

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_WINDOWS = re.compile(r'"iteration_bounds":\[([^\]]*)\]')
_KERNEL = "tpu_custom_call"


class Core(NamedTuple):
    """How a TPU device multiplies; cores of one device work at the same time."""

    cores: int
    units: int  # matrix units (MXUs) of a core
    width: int  # rows and columns of a unit
    rows: int  # that pass through a unit in a cycle

    @property
    def flops(self) -> int:
        """FLOPs of a device in a cycle."""
        return 2 * self.cores * self.units * self.width**2 * self.rows


# Cores and units are those of jax/_src/pallas/mosaic/tpu_info.py. The units since v6e take two rows a cycle: only so do
# the compiler's products reach the data sheet's rate.
_CORES = {
    "TPU v4": Core(cores=2, units=4, width=128, rows=1),
    "TPU v5 lite": Core(cores=1, units=4, width=128, rows=1),
    "TPU v5e": Core(cores=1, units=4, width=128, rows=1),
    "TPU v5": Core(cores=2, units=4, width=128, rows=1),
    "TPU v5p": Core(cores=2, units=4, width=128, rows=1),
    "TPU v6 lite": Core(cores=1, units=2, width=256, rows=2),
    "TPU v6e": Core(cores=1, units=2, width=256, rows=2),
    "TPU7x": Core(cores=1, units=2, width=256, rows=2),
}


# The instructions of an operation by its name and its number of windows, see `bundles.Dumps.of`.
CountOf = Callable[[str, int | None], Count]


class Speed(NamedTuple):
    """The rates at which a device works."""

    clock: float  # Hz
    core: Core
    hbm_bandwidth: float  # bytes/s
    links: float  # bytes/s


def speed_of(device_kind: str, hardware: Hardware) -> Speed | None:
    """Returns the rates of a TPU; its clock is the data sheet's peak rate divided by the FLOPs of a cycle.

    Args:
      device_kind: the kind as `jax.Device.device_kind` names it.
      hardware: its figures.
    """
    core = _CORES.get(device_kind)
    if core is None:
        return None
    return Speed(hardware.bfloat16 / core.flops, core, hardware.hbm_bandwidth, hardware.links)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a program; the times are of one execution, in seconds."""

    name: str
    opcode: str
    part: str  # one of parts.PARTS
    source: str  # JAX's name, "" if XLA has made it
    executions: int
    estimate: float | None  # by the compiler
    bundles: float
    products: float
    memory: float
    wait: float = 0.0  # for an asynchronous copy or a collective, beyond what other operations hide
    is_exact: bool = True

    @property
    def scheduled(self) -> float:
        """Seconds by the schedule."""
        return max(self.bundles, self.products, self.memory) + self.wait

    @property
    def estimated(self) -> float:
        """Seconds by the compiler's estimate."""
        return (max(self.bundles, self.products, self.memory) if self.estimate is None else self.estimate) + self.wait

    @property
    def idle(self) -> float:
        """Seconds of the scheduled time in which the memory has nothing to do."""
        return self.scheduled - self.memory - self.wait

    @property
    def bound(self) -> str:
        """What the scheduled time is that of: "instructions", "products", "memory" or "waiting"."""
        times = {"instructions": self.bundles, "products": self.products, "memory": self.memory, "waiting": self.wait}
        return max(times, key=lambda name: times[name])


def operations(text: str, count_of: CountOf, speed: Speed) -> list[Operation]:
    """Returns the operations of a compiled program that take time, in its order, without collectives.

    Of a conditional, the branch that takes longest counts.

    Args:
      text: of the compiled program, with the compiler's estimates.
      count_of: gives the instructions of its operations.
      speed: the rates of the device.
    """
    module, entry = parse(text)
    return _Walk(module, count_of, speed).through(entry, "other")


@dataclasses.dataclass
class _Transfer:
    """An asynchronous copy that has begun."""

    seconds: float
    begun: int  # number of operations before it


class _Walk:
    """Goes through the computations of a program, each as often as it is executed."""

    def __init__(self, module: Module, count_of: CountOf, speed: Speed) -> None:
        self.module, self.count_of, self.speed = module, count_of, speed

    def through(self, name: str, enclosing: str) -> list[Operation]:
        """Returns the operations of one execution of a computation that a part encloses."""
        found: list[Operation] = []
        idle: list[float] = []  # seconds for which each operation of this computation leaves the memory alone
        begun: dict[str, _Transfer] = {}
        for one in self.module[name].values():
            here: list[Operation] = []
            if one.opcode == "while":
                here = self._loop(name, one, enclosing)
            elif one.opcode in ("conditional", "call"):
                here = self._called(name, one, enclosing)
            elif self._is_collective(one):
                continue
            elif one.opcode.endswith("-start"):
                begun[one.name] = _Transfer(transferred(one) / self.speed.hbm_bandwidth, len(idle))
            elif one.opcode.endswith(("-done", "-update")):
                here = self._ended(name, one, enclosing, begun, idle)
            elif one.opcode not in FREE and not (one.opcode == "custom-call" and self._is_free(one)):
                here = [self._operation(name, one, enclosing)]
            found += here
            idle.append(sum((op.executions * op.idle for op in here), 0.0))
        return found

    def _is_collective(self, one: Instruction) -> bool:
        """Whether an operation, or the one that it wraps to run beside others, is a collective."""
        if one.opcode in ("async-start", "async-update", "async-done"):
            wrapped = [inner for name in called_names(CALLS, one.rest) for inner in self.module.get(name, {}).values()]
            return any(inner.opcode in KINDS for inner in wrapped)
        return one.opcode.removesuffix("-start").removesuffix("-done") in KINDS

    def _is_free(self, call: Instruction) -> bool:
        """Whether a custom call only names memory, as AllocateBuffer and ConcatBitcast do."""
        return f'"{_KERNEL}"' not in call.rest and not self.count_of(call.name, None).bundles

    def _part(self, computation: str, one: Instruction, enclosing: str) -> tuple[str, str]:
        source = source_of(self.module, computation, one)
        return part_of(source) or enclosing, source

    def _loop(self, computation: str, one: Instruction, enclosing: str) -> list[Operation]:
        trips = trips_of(self.module, computation, one)
        found = SOURCE.search(one.rest)
        inner = self.through(one.required_attribute("body"), (part_of(found[1]) if found else "") or enclosing)
        return [
            dataclasses.replace(op, executions=op.executions * (trips or 1), is_exact=op.is_exact and trips is not None)
            for op in inner
        ]

    def _called(self, computation: str, one: Instruction, enclosing: str) -> list[Operation]:
        part, _ = self._part(computation, one, enclosing)
        pattern = BRANCHES if one.opcode == "conditional" else CALLS
        branches = [self.through(name, part) for name in called_names(pattern, one.rest)]
        return max(branches, key=lambda ops: sum(op.executions * op.scheduled for op in ops), default=[])

    def _ended(
        self, computation: str, one: Instruction, enclosing: str, begun: dict[str, _Transfer], idle: list[float]
    ) -> list[Operation]:
        """Returns the wait for an asynchronous copy at its end, if what runs beside it does not hide it."""
        transfer = begun.pop(one.operands[0], None) if one.operands else None
        if transfer is None:
            return []
        if one.opcode.endswith("-update"):
            begun[one.name] = transfer
            return []
        left = transfer.seconds
        for number in range(transfer.begun, len(idle)):
            hidden = min(left, idle[number])
            left, idle[number] = left - hidden, idle[number] - hidden
        if left <= 0:
            return []
        part, source = self._part(computation, one, enclosing)
        return [Operation(one.name, one.opcode, part, source, 1, 0.0, 0.0, 0.0, 0.0, left)]

    def _operation(self, computation: str, one: Instruction, enclosing: str) -> Operation:
        part, source = self._part(computation, one, enclosing)
        count = self.count_of(one.name, self._windows(one))
        estimate = _ESTIMATE.search(one.rest)
        return Operation(
            name=one.name,
            opcode=one.opcode,
            part=part,
            source=source,
            executions=1,
            estimate=int(estimate[1]) / self.speed.clock if estimate else None,
            bundles=count.bundles / self.speed.clock,
            products=count.rows / self.speed.core.rows / self.speed.clock,
            memory=moved(self.module, computation, one) / self.speed.hbm_bandwidth,
            is_exact=count.is_exact,
        )

    def _windows(self, one: Instruction) -> int | None:
        """Returns the number of windows that each core works on, None for a kernel."""
        found = _WINDOWS.search(one.rest)
        if found is None:
            return None
        return -(-math.prod(map(int, re.findall(r"\d+", found[1]))) // self.speed.core.cores)
