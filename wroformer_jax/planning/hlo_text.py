"""XLA's text of a compiled program: its computations and instructions, and how often a loop turns.

The text (`jax.stages.Compiled.as_text`) is a list of computations. The program's own (ENTRY) calls others, as bodies of
loops, branches, fusions and asynchronous operations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
CALLS = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)|(?:called_computations|branch_computations)=\{([^}]*)\}")
BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

# Operations that only move or rename a value, so that a number passes through unchanged.
_TRANSPARENT = ("copy", "bitcast", "convert", "reshape", "opt-barrier")


class Instruction(NamedTuple):
    """One line of a computation."""

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


Module = Mapping[str, Mapping[str, Instruction]]  # computations by name


def parse(text: str) -> tuple[Module, str]:
    """Returns the computations by name, and the name of the program's own."""
    module: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = module.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            is_root, name, shape, opcode, rest = found.groups()
            operands, rest = _operands(rest)
            current[name] = Instruction(name, shape, opcode, operands, rest, bool(is_root))
    return module, entry


def _operands(text: str) -> tuple[tuple[str, ...], str]:
    """Returns the names (or numbers) of the operands without shapes, and the text behind their closing parenthesis."""
    depth, end = 1, 0
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    inner = re.sub(r"/\*.*?\*/|\{[^{}]*\}|\[[^\[\]]*\]", "", text[: end - 1])
    return tuple(operand.split()[-1].lstrip("%") for operand in inner.split(",") if operand.strip()), text[end:]


def called_names(pattern: re.Pattern[str], rest: str) -> list[str]:
    """Returns the names of computations; each match has one or a list of them."""
    return [name.strip().lstrip("%") for one, several in pattern.findall(rest) for name in (one or several).split(",")]


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


def trips_of(module: Module, caller: str, loop: Instruction) -> int | None:
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

    computation: Mapping[str, Instruction]
    arguments: tuple[str, ...]  # names in the calling frame


def _root(frame: _Frame) -> Instruction:
    return next(instruction for instruction in frame.computation.values() if instruction.is_root)


def _integer(frames: Sequence[_Frame], name: str) -> int | None:
    """Returns the number that a name of the innermost frame stands for, None if it is not a constant.

    A value that a loop changes has its initial value.
    """
    _, found = _origin(frames, name)
    if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.operands[0]):
        return None
    return int(found.operands[0])


def _origin(frames: Sequence[_Frame], name: str) -> tuple[Sequence[_Frame], Instruction | None]:
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
