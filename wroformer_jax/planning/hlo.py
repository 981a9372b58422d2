"""Finds the collectives of a compiled program in XLA's text of it.

The text (`jax.stages.Compiled.as_text`) is a list of computations. The program's own (ENTRY) calls others, as bodies of
loops, branches, fusions and asynchronous operations. An operation counts as often as its computation is executed. For a
loop, that number is in XLA's annotations or follows from the loop's condition.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_CALLS = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)|(?:called_computations|branch_computations)=\{([^}]*)\}")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_AXIS = re.compile(r"'([^']+)'=(\d+)")

# Operations that only move or rename a value, so that a number passes through unchanged.
_TRANSPARENT = ("copy", "bitcast", "convert", "reshape", "opt-barrier")


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


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the text behind the operands: attributes and metadata
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """Returns the value of `name=value` in the attributes, None if it is not among them."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def required_attribute(self, name: str) -> str:
        """Returns the value of an attribute that every operation of this kind has."""
        found = self.attribute(name)
        assert found is not None, f"{self.opcode} {self.name} has no attribute {name}"
        return found


_Module = Mapping[str, Mapping[str, _Instruction]]  # computations by name


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in its order, without those of a single device.

    An asynchronous collective (-start and -done; on TPUs a chain of fusions of one channel) counts once. Of a
    conditional, the branch that sends most counts.

    Args:
      text: of a compiled program.
    """
    module, entry = _parse(text)
    header = text[: text.find("\n")]
    counts = (re.search(rf"\b{name}=(\d+)", header) for name in ("num_partitions", "replica_count"))
    devices = math.prod(int(count[1]) for count in counts if count)
    found = (one if one.group else dataclasses.replace(one, group=devices) for one in _visit(module, entry, 1, True))
    return [one for one in found if one.group > 1]


def _visit(module: _Module, name: str, executions: int, is_exact: bool) -> list[Collective]:
    """Returns the collectives of a computation and of all that it calls."""
    found: list[Collective] = []
    channels: set[tuple[str, str]] = set()  # of fusions: TPUs spread one collective over several
    for instruction in module[name].values():
        if instruction.opcode == "while":
            trips = _trips(module, name, instruction)
            exact = is_exact and trips is not None
            turns = 1 if trips is None else trips
            found += _visit(module, instruction.required_attribute("body"), executions * turns, exact)
        elif instruction.opcode == "conditional":
            branches = [_visit(module, branch, executions, is_exact) for branch in _names(_BRANCHES, instruction.rest)]
            found += max(branches, key=lambda some: sum(one.sent * one.executions for one in some), default=[])
        elif (kind := instruction.opcode.removesuffix("-start")) in KINDS:
            found.append(_collective(instruction, kind, executions, is_exact))
        elif instruction.opcode == "fusion":
            for called in _names(_CALLS, instruction.rest):
                for channel, one in _fused(module, called, executions, is_exact):
                    if channel is None or (one.kind, channel) not in channels:
                        found.append(one)
                    if channel is not None:
                        channels.add((one.kind, channel))
        elif instruction.opcode not in ("async-update", "async-done"):  # they repeat the computation of async-start
            for called in _names(_CALLS, instruction.rest):
                found += _visit(module, called, executions, is_exact)
    return found


def _fused(module: _Module, name: str, executions: int, is_exact: bool) -> Iterator[tuple[str | None, Collective]]:
    """Yields the collectives within a fusion, with their channels."""
    for instruction in module[name].values():
        if (kind := instruction.opcode.removesuffix("-start")) in KINDS:
            one = _collective(instruction, kind, executions, is_exact)
            if name.startswith("all-reduce-scatter"):  # the rest of the fusion keeps a part of the sum
                one = dataclasses.replace(one, kind="reduce-scatter")
            yield instruction.attribute("channel_id"), one
        for called in _names(_CALLS, instruction.rest) if instruction.opcode == "fusion" else ():
            yield from _fused(module, called, executions, is_exact)


def _collective(instruction: _Instruction, kind: str, executions: int, is_exact: bool) -> Collective:
    group = _group(instruction)
    size = num_bytes(instruction.shape)
    if instruction.opcode == "all-gather-start":  # its result is a tuple of its input and its output
        size = size * group // (group + 1)
    elif instruction.opcode == "collective-permute-start":
        scalars = sum(_size(dtype, dims) for dtype, dims in _ARRAY.findall(instruction.shape) if not dims)
        size = (size - scalars) // 2
    elif kind == "reduce-scatter":
        size *= group
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    return Collective(kind, size, group, executions, is_exact, source[1] if source else "")


def _group(instruction: _Instruction) -> int:
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


def num_bytes(shape: str) -> int:
    """Returns the bytes, without padding, of a shape as XLA writes it: "f32[2,3]{1,0}" or a tuple of such."""
    return sum(_size(dtype, dims) for dtype, dims in _ARRAY.findall(shape))


def _size(dtype: str, dims: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    width = re.search(r"\d+", dtype)
    assert width or dtype == "pred", f"unknown type {dtype!r}"
    bits = int(width[0]) if width else 8
    return math.prod(int(size) for size in dims.split(",") if size) * bits // 8


def _trips(module: _Module, caller: str, loop: _Instruction) -> int | None:
    """Returns the turns of a loop by XLA's annotation or by its condition `counter < constant`, else None.

    JAX's loops count from a start in steps of one.
    """
    if told := _TRIPS.search(loop.rest):
        return int(told[1])
    frames = [_Frame(module[caller], ()), _Frame(module[loop.required_attribute("condition")], loop.operands)]
    root = _root(frames[-1])
    if root.opcode == "fusion":
        frames.append(_Frame(module[root.required_attribute("calls")], root.operands))
        root = _root(frames[-1])
    if root.opcode != "compare" or "direction=LT" not in root.rest:
        return None
    first, last = (_integer(frames, operand) for operand in root.operands)
    return None if first is None or last is None else max(0, last - first)


class _Frame(NamedTuple):
    """A computation under way."""

    computation: Mapping[str, _Instruction]
    arguments: tuple[str, ...]  # names in the calling frame


def _root(frame: _Frame) -> _Instruction:
    return next(instruction for instruction in frame.computation.values() if instruction.is_root)


def _integer(frames: Sequence[_Frame], name: str) -> int | None:
    """Returns the number that a name of the innermost frame stands for, None if it is not a constant.

    A value that a loop changes has its initial value.
    """
    _, found = _origin(frames, name)
    if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.operands[0]):
        return None
    return int(found.operands[0])


def _origin(frames: Sequence[_Frame], name: str) -> tuple[Sequence[_Frame], _Instruction | None]:
    """Returns the instruction that makes a value, looking through parameters, tuples and copies, and its frames."""
    found = frames[-1].computation.get(name)
    if found is None:
        return frames, None
    if found.opcode == "parameter" and len(frames) > 1:
        return _origin(frames[:-1], frames[-1].arguments[int(found.operands[0])])
    if found.opcode in _TRANSPARENT:
        return _origin(frames, found.operands[0])
    if found.opcode == "get-tuple-element":
        outer, whole = _origin(frames, found.operands[0])
        if whole is not None and whole.opcode == "tuple":
            return _origin(outer, whole.operands[int(found.required_attribute("index"))])
    return frames, found


def _parse(text: str) -> tuple[_Module, str]:
    """Returns the computations by name, and the name of the program's own."""
    module: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = module.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            is_root, name, shape, opcode, rest = found.groups()
            operands, rest = _operands(rest)
            current[name] = _Instruction(name, shape, opcode, operands, rest, bool(is_root))
    return module, entry


def _operands(text: str) -> tuple[tuple[str, ...], str]:
    """Returns the names (or numbers) of the operands without shapes, and the text behind their closing parenthesis."""
    depth, end = 1, 0
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    inner = re.sub(r"/\*.*?\*/|\{[^{}]*\}|\[[^\[\]]*\]", "", text[: end - 1])
    return tuple(operand.split()[-1].lstrip("%") for operand in inner.split(",") if operand.strip()), text[end:]


def _names(pattern: re.Pattern[str], rest: str) -> list[str]:
    """Returns the names of computations; each match has one or a list of them."""
    return [name.strip().lstrip("%") for one, several in pattern.findall(rest) for name in (one or several).split(",")]
