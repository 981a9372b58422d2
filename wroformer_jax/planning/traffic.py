"""The bytes that operations of a compiled program move to and from a TPU's main memory (HBM).

XLA writes the layout behind each shape: `bf16[60,809,384]{2,1,0:T(8,128)(2,1)S(1)}` is stored in tiles of 8 x 128, so
that its last two axes are padded to multiples of these, and lies in memory space 1. Space 1 is VMEM, on the chip; an
array there costs no traffic. Arrays without a space lie in HBM.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from wroformer_jax.planning.hlo_text import CALLS, Instruction, Module, called_names

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE, _SPACE, _WIDTH = re.compile(r"T\(([\d,]+)\)"), re.compile(r"S\((\d+)\)"), re.compile(r"\d+")
_NO_DATA = ("token", "opaque")

# These read as much of their first operand as they return.
_SLICES = ("slice", "dynamic-slice", "gather")
_RENAMES = ("bitcast", "reshape", "get-tuple-element")

# Operations that move nothing themselves.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
)


def hbm_bytes(shape: str) -> int:
    """Returns the bytes in HBM, with the padding of tiles, of a shape as XLA writes it, or of a tuple of such."""
    return sum(size for size, space in _arrays(shape) if space == 0)


def padded_bytes(shape: str) -> int:
    """Returns the bytes of a shape with the padding of tiles, wherever it lies."""
    return sum(size for size, _ in _arrays(shape))


def moved(module: Module, computation: str, instruction: Instruction) -> int:
    """Returns the bytes of HBM that one execution of an operation reads and writes.

    A fusion reads of an array only what the slices inside it take, and an update in place writes only what it updates.

    Args:
      module: the program.
      computation: the name of the one that the operation is in.
      instruction: the operation; not the start or end of an asynchronous one, see `transferred`.
    """
    if instruction.opcode in FREE:
        return 0
    own = module[computation]
    reads = 0
    for number, name in enumerate(instruction.operands):
        source = own.get(name)
        if source is not None and hbm_bytes(source.shape):
            reads += min(hbm_bytes(source.shape), _read(module, instruction, number, hbm_bytes(source.shape)))
    return reads + _written(module, own, instruction)


def transferred(instruction: Instruction) -> int:
    """Returns the bytes of HBM that an asynchronous copy or slice moves, by the shape of its start.

    The shape is a tuple: the two arrays in any order, and a flag. The smaller is what moves.
    """
    arrays = [(size, space) for size, space in _arrays(instruction.shape) if size]
    data = [(size, space) for size, space in arrays if space in (0, 1)]
    in_hbm = sum(space == 0 for _, space in data)
    return in_hbm * min((size for size, _ in data), default=0)


def _read(module: Module, user: Instruction, number: int, whole: int) -> int:
    """Returns the bytes that an operation reads of its operand of a number, which has `whole` bytes."""
    if user.opcode in _SLICES and number == 0:
        return padded_bytes(user.shape)
    if user.opcode == "dynamic-update-slice" and number == 0:
        return 0
    if user.opcode != "fusion":
        return whole
    read, is_result = _read_inside(module, user, number, whole)
    return whole if is_result else read


def _read_inside(module: Module, fusion: Instruction, number: int, whole: int) -> tuple[int, bool]:
    """Returns the bytes that a fusion reads of an operand, and whether its result is that operand by another name."""
    [called] = called_names(CALLS, fusion.rest)
    parameter = next(
        one for one in module[called].values() if one.opcode == "parameter" and one.operands[0] == str(number)
    )
    return _read_under(module, called, parameter.name, whole)


def _read_under(module: Module, computation: str, name: str, whole: int) -> tuple[int, bool]:
    """As `_read_inside`, for a value by the name that it has in a computation."""
    own = module[computation]
    read, is_result = 0, own[name].is_root
    for user in own.values():
        for number, operand in enumerate(user.operands):
            if operand != name or user.opcode in ("parameter", "constant", "tuple"):
                continue
            under, is_renamed = 0, user.opcode in _RENAMES
            if user.opcode == "fusion":
                under, is_renamed = _read_inside(module, user, number, whole)
            elif not is_renamed:
                under = _read(module, user, number, whole)
            read += under
            if is_renamed:
                under, further = _read_under(module, computation, user.name, whole)
                read, is_result = read + under, is_result or further
    return min(whole, read), is_result


def _written(module: Module, own: Mapping[str, Instruction], instruction: Instruction) -> int:
    if instruction.opcode == "dynamic-update-slice":
        update = own.get(instruction.operands[1])
        return padded_bytes(update.shape) if update and hbm_bytes(instruction.shape) else 0
    if instruction.opcode != "fusion":
        return hbm_bytes(instruction.shape)
    [called] = called_names(CALLS, instruction.rest)
    inner = module[called]
    root = next(one for one in inner.values() if one.is_root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    shapes = list(_shapes(instruction.shape))
    if len(shapes) != len(roots):
        return hbm_bytes(instruction.shape)
    return sum(
        min(hbm_bytes(shape), _written_by(module, called, one))
        for shape, one in zip(shapes, roots, strict=True)
        if hbm_bytes(shape)
    )


def _written_by(module: Module, computation: str, root: Instruction) -> int:
    while root.opcode in ("bitcast", "reshape") and root.operands[0] in module[computation]:
        root = module[computation][root.operands[0]]
    if root.opcode == "dynamic-update-slice" and root.operands[1] in module[computation]:
        return padded_bytes(module[computation][root.operands[1]].shape)
    if root.opcode == "fusion":
        [called] = called_names(CALLS, root.rest)
        return _written_by(module, called, next(one for one in module[called].values() if one.is_root))
    return padded_bytes(root.shape)


def _shapes(shape: str) -> Iterator[str]:
    return (found[0] for found in _ARRAY.finditer(shape))


def _arrays(shape: str) -> Iterator[tuple[int, int]]:
    """Yields the padded bytes and the memory space of each array of a shape."""
    for dtype, dims, layout in _ARRAY.findall(shape):
        if dtype in _NO_DATA:
            continue
        width = _WIDTH.search(dtype)
        space = _SPACE.search(layout)
        yield _padded(dims, layout) * (int(width[0]) if width else 8) // 8, int(space[1]) if space else 0


def _padded(dims: str, layout: str) -> int:
    """Returns the number of elements of an array with the padding of its first level of tiles."""
    sizes = [int(size) for size in dims.split(",") if size]
    order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]  # minor to major
    tile = _TILE.search(layout)
    if not sizes or not tile or len(order) != len(sizes):
        return math.prod(sizes)
    edges = [int(edge) for edge in tile[1].split(",")]
    if len(edges) > len(sizes):
        edges = [math.prod(edges)] if len(sizes) == 1 else edges[-len(sizes) :]
    for axis, edge in zip(order, reversed(edges), strict=False):
        sizes[axis] = -(-sizes[axis] // edge) * edge
    return math.prod(sizes)
