"""Finds the collectives of a compiled program in XLA's text of it.

An operation counts as often as its computation is executed. For a loop, that number is in XLA's annotations or follows
from the loop's condition.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from wroformer_jax.planning.hlo_text import (
    BRANCHES,
    CALLS,
    Instruction,
    Module,
    called_names,
    num_bytes,
    parse,
    trips_of,
)

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_AXIS = re.compile(r"'([^']+)'=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation in which several devices exchange data."""

    kind: str  # one of KINDS
    size: int  # bytes of a device's result or of its input, whichever is larger
    group: int  # number of devices that take part together
    executions: int  # in a run of the program
    is_exact: bool  # False inside a loop whose number of turns is unknown; such a loop counts once
    source: str  # JAX's name of the operation that it belongs to, "" if XLA has none

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one execution by the algorithm that sends least (a ring)."""
        passed_on = {"all-reduce": 2 * (self.group - 1) / self.group, "collective-permute": 1.0}
        return self.size * passed_on.get(self.kind, (self.group - 1) / self.group)


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in its order, without those of a single device.

    An asynchronous collective (-start and -done; on TPUs a chain of fusions of one channel) counts once. Of a
    conditional, the branch that sends most counts.

    Args:
      text: of a compiled program.
    """
    module, entry = parse(text)
    header = text[: text.find("\n")]
    counts = (re.search(rf"\b{name}=(\d+)", header) for name in ("num_partitions", "replica_count"))
    devices = math.prod(int(count[1]) for count in counts if count)
    found = (one if one.group else dataclasses.replace(one, group=devices) for one in _visit(module, entry, 1, True))
    return [one for one in found if one.group > 1]


def _visit(module: Module, name: str, executions: int, is_exact: bool) -> list[Collective]:
    """Returns the collectives of a computation and of all that it calls."""
    found: list[Collective] = []
    channels: set[tuple[str, str]] = set()  # of fusions: TPUs spread one collective over several
    for instruction in module[name].values():
        if instruction.opcode == "while":
            trips = trips_of(module, name, instruction)
            exact = is_exact and trips is not None
            turns = 1 if trips is None else trips
            found += _visit(module, instruction.required_attribute("body"), executions * turns, exact)
        elif instruction.opcode == "conditional":
            branches = [
                _visit(module, branch, executions, is_exact) for branch in called_names(BRANCHES, instruction.rest)
            ]
            found += max(branches, key=lambda some: sum(one.sent * one.executions for one in some), default=[])
        elif (kind := instruction.opcode.removesuffix("-start")) in KINDS:
            found.append(_collective(instruction, kind, executions, is_exact))
        elif instruction.opcode == "fusion":
            for called in called_names(CALLS, instruction.rest):
                for channel, one in _fused(module, called, executions, is_exact):
                    if channel is None or (one.kind, channel) not in channels:
                        found.append(one)
                    if channel is not None:
                        channels.add((one.kind, channel))
        elif instruction.opcode not in ("async-update", "async-done"):  # they repeat the computation of async-start
            for called in called_names(CALLS, instruction.rest):
                found += _visit(module, called, executions, is_exact)
    return found


def _fused(module: Module, name: str, executions: int, is_exact: bool) -> Iterator[tuple[str | None, Collective]]:
    """Yields the collectives within a fusion, with their channels."""
    for instruction in module[name].values():
        if (kind := instruction.opcode.removesuffix("-start")) in KINDS:
            one = _collective(instruction, kind, executions, is_exact)
            if name.startswith("all-reduce-scatter"):  # the rest of the fusion keeps a part of the sum
                one = dataclasses.replace(one, kind="reduce-scatter")
            yield instruction.attribute("channel_id"), one
        for called in called_names(CALLS, instruction.rest) if instruction.opcode == "fusion" else ():
            yield from _fused(module, called, executions, is_exact)


def _collective(instruction: Instruction, kind: str, executions: int, is_exact: bool) -> Collective:
    group = _group(instruction)
    size = num_bytes(instruction.shape)
    if instruction.opcode == "all-gather-start":  # its result is a tuple of its input and its output
        size = size * group // (group + 1)
    elif instruction.opcode == "collective-permute-start":
        scalars = sum(map(num_bytes, re.findall(r"\b[a-z]+\d+\[\]", instruction.shape)))
        size = (size - scalars) // 2
    elif kind == "reduce-scatter":
        size *= group
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    return Collective(kind, size, group, executions, is_exact, source[1] if source else "")


def _group(instruction: Instruction) -> int:
    """Returns the number of devices that take part together, 0 for all of the program's."""
    rest = instruction.rest
    if "source_target_pairs=" in rest:
        return 2 if "source_target_pairs={{" in rest else 1
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):  # [groups,devices]<=[...]
        return int(grid[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in _AXIS.findall(named[1])}
        # A part of an axis is written 'axis':(before)size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    return 0
