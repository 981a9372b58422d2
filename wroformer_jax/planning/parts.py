"""Which part of the model or of a training step an operation of a compiled program belongs to.

The model and the step name their parts by `jax.named_scope`. XLA keeps the names in the metadata of its operations, as
in `jit(plan_step)/transpose(jvp(RoFormer))/while/body/time_attention/mixer_0/time_scores/dot_general`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wroformer_jax.planning.hlo_text import CALLS, Instruction, Module, called_names

# The names, in the order in which a program comes to them, and what they stand for.
PARTS = {
    "stft": "spectrum of the audio",
    "band_split": "bands of bins to features",
    "time_attention": "norm, projections, rotary embedding and gates along time",
    "time_scores": "scores, softmax and weighted sums along time",
    "time_feed_forward": "feed-forward layers and norms along time",
    "freq_attention": "norm, projections, rotary embedding and gates along bands",
    "freq_scores": "scores, softmax and weighted sums along bands",
    "freq_feed_forward": "feed-forward layers and norms along bands",
    "masks": "mask estimators",
    "inverse_stft": "masks times spectrum, and its signal",
    "loss": "losses",
    "teacher": "the teacher's masks",
    "optimizer": "update of the parameters",
    "collectives": "exchange with other devices",
    "other": "between the parts: loops, copies, arguments",
}

_PRODUCTS = ("convolution", "dot")
_WRAPPED = re.compile(r"^(?:\w+\()+|\)+$")
SOURCE = re.compile(r'op_name="([^"]*)"')
_NEIGHBOURS = 4  # longest way along operands or users to an operation with a name


def part_of(source: str) -> str:
    """Returns the part that JAX's name of an operation lies in, "" if it names none.

    The innermost name counts; all of the teacher is one part.
    """
    names = [_WRAPPED.sub("", name) for name in source.split(";")[0].split("/")]
    found = [name for name in names if name in PARTS]
    if "teacher" in found:
        return "teacher"
    return found[-1] if found else ""


def is_backward(source: str) -> bool:
    """Whether an operation belongs to the backward pass, or to what remat computes again for it."""
    return "transpose(" in source or "rematted_computation" in source


def source_of(module: Module, computation: str, instruction: Instruction) -> str:
    """Returns JAX's name of an operation, or that of a neighbour where XLA has made the operation itself.

    A fusion has the name of the product inside it, or else of its result, or of any operation inside it that lies in a
    part. A copy has the name of what it copies, or else of what uses it. "" if none of them has one.
    """
    if found := _own_source(module, instruction):
        return found
    own = module[computation]
    for step in (_operands, _users):
        near = [instruction]
        for _ in range(_NEIGHBOURS):
            near = [other for one in near for other in step(own, one)]
            if found := next(filter(part_of, (_own_source(module, one) for one in near)), ""):
                return found
    return ""


def _own_source(module: Module, instruction: Instruction) -> str:
    found = SOURCE.search(instruction.rest)
    own = found[1] if found else ""
    if instruction.opcode != "fusion":
        return own if part_of(own) else ""
    inside = list(_inside(module, instruction))
    products = [source for opcode, source in inside if opcode in _PRODUCTS]
    candidates = [*products, own, *(source for _, source in reversed(inside))]
    return next(filter(part_of, candidates), "")


def _inside(module: Module, fusion: Instruction) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for called in called_names(CALLS, fusion.rest):
        for one in module.get(called, {}).values():
            source = SOURCE.search(one.rest)
            found.append((one.opcode, source[1] if source else ""))
            if one.opcode == "fusion":
                found += _inside(module, one)
    return found


def _operands(own: Mapping[str, Instruction], instruction: Instruction) -> list[Instruction]:
    return [own[name] for name in instruction.operands if name in own]


def _users(own: Mapping[str, Instruction], instruction: Instruction) -> list[Instruction]:
    return [one for one in own.values() if instruction.name in one.operands]
