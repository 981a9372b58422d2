"""The tables that `wroformer plan` prints; each row says what its numbers mean."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from wroformer_jax.cli.tables import Row, aligned

if TYPE_CHECKING:
    from wroformer_jax.planning.plans import Memory, Plan
    from wroformer_jax.planning.roofline import Roofline
    from wroformer_jax.planning.search import Limits
    from wroformer_jax.planning.time_parts import TimeCount

GIB = 2**30
_MIB = 2**20
_PAPER = "of the paper's 8 s (arXiv 2510.25745)"

# JAX puts these around and between the names of modules and operations.
_WRAPPED = re.compile(r"\b(?:transpose|jvp|vmap)\(([^()]*)\)")
_NOISE = ("while", "body", "closed_call", "checkpoint", "rematted_computation", "remat", "shard_map")

_MEANING = {
    "all-reduce": "sums over devices, for instance of gradients",
    "all-gather": "every device gets all parts, for instance of parameters cut over fsdp",
    "reduce-scatter": "sums of which each device keeps a part, for instance of gradients cut over fsdp",
    "all-to-all": "parts exchanged with every other device: an array is cut along another axis",
    "collective-permute": "passed on to one other device, for instance the edges of neighbouring parts of time",
}


def tables(found: Plan, limits: Limits | None, *, verbose: bool) -> str:
    """Returns all tables of a plan.

    Args:
      found: the plan.
      limits: the end of the search for the longest audio, None if there was none.
      verbose: list the collectives one by one.
    """
    sections = [
        _about(found, limits),
        _memory(found.memory, inference=found.inference),
        _communication(found, verbose=verbose),
        _compute(found),
        _time(found.roofline, found.device_kind),
    ]
    if found.time is not None:
        sections.append(time_table(found.time, inference=found.inference, verbose=verbose))
    return "\n\n".join(sections)


def _about(found: Plan, limits: Limits | None) -> str:
    model, config = found.config.model, found.config
    what = "forward pass" if found.inference else "training step"
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.items())
    mixer = f"{model.time_mixer}, window {model.window}, {model.num_sinks} sinks"
    mixer = mixer if model.time_mixer == "windowed_sink" else model.time_mixer
    rows: list[Row] = [
        ("PLAN", f"{what}, compiled for {found.target} in {found.compile_seconds:.0f} s"),
        ("devices", f"{found.num_devices} {found.device_kind}, mesh {mesh}"),
        ("audio", f"{config.batch_size} x {duration(found.seconds)} a step, {found.frames:,} frames each"),
        ("time attention", mixer),
        ("dtypes", f"products in {model.dtype}, the stream between layers in {model.stream_dtype}"),
    ]
    if (parts := found.mesh["seq"]) > 1:
        idle = f"; {parts - found.num_parts} of {parts} have padding only" if found.num_parts < parts else ""
        rows.insert(3, ("of it a device", f"{duration(found.part_seconds)} of an example{idle}"))
    at_once = f"{model.places_at_once:,} frames x bands" if model.places_at_once else "everything"
    memory = f"{at_once} worked on at a time (model.places_at_once)"
    if not found.inference:
        kept = "" if model.blocks_per_save == 1 else f", blocks_per_save {model.blocks_per_save}"
        rows.append(("memory", f"remat {model.remat}{kept}; {memory}"))
        rows.append(("teacher", "full attention, of the model's sizes" if found.teacher else "none"))
    else:
        rows.append(("memory", memory))
    if limits:
        rows.append(("longest audio", _longest(limits)))
    return aligned(rows, left=2)


def _longest(limits: Limits) -> str:
    fits, too_long = limits
    assert fits is not None, "there is no plan if nothing fits"
    if too_long is None:
        return f"fits up to the longest that a run takes, {duration(fits.seconds)}"
    return f"{duration(fits.seconds)} fit, {duration(too_long.seconds)} do not"


def _memory(memory: Memory, *, inference: bool) -> str:
    rows: list[Row] = [("MEMORY OF EACH DEVICE", "GiB", "")]

    def add(name: str, size: int, meaning: str) -> None:
        rows.append((name, gib(size), meaning))

    if inference:
        add("state", memory.state, "the parameters")
    else:
        add("state", memory.state, "kept from step to step: parameters, AdamW's moments, and the moving average if any")
    if memory.teacher:
        add("teacher", memory.teacher, "parameters of the frozen teacher")
    add("inputs", memory.inputs, "the audio of the examples, and padding")
    laid_out = "the residual stream, buffers" if inference else "what the backward pass needs, gradients, buffers"
    add("activations", memory.activations, f"laid out by the program: {laid_out}")
    if memory.outputs:
        add("outputs", memory.outputs, "results that do not take an input's place")
    add("peak", memory.peak, "all of it at once")
    if memory.host:
        add("host memory", memory.host, "kept by the host in place of the device, not part of the peak")
    table = aligned(rows, last_left=True)
    if memory.available is None:
        return f"{table}\nthe memory of these devices is not known: give --memory GIB to see whether it fits"
    share = memory.peak / memory.available
    return f"{table}\nfits: {gib(memory.peak)} of {gib(memory.available)} GiB a device ({share:.0%})"


def _communication(found: Plan, *, verbose: bool) -> str:
    from wroformer_jax.planning.plans import sent_bytes

    if not found.collectives:
        return "COMMUNICATION OF EACH DEVICE\nnone"
    rows: list[Row] = [("COMMUNICATION OF EACH DEVICE", "TIMES A STEP", "MiB SENT A STEP", "")]
    for kind, meaning in _MEANING.items():
        if some := [one for one in found.collectives if one.kind == kind]:
            times = sum(one.executions for one in some)
            rows.append((kind, f"{times:,}", _mib(sent_bytes(some)), meaning))
    rows.append(("total", "", _mib(sent_bytes(found.collectives)), "--verbose names each of them"))
    text = aligned(rows, last_left=True)
    if verbose:
        named: list[Row] = [("EACH OF THEM", "TIMES", "MiB OF THE ARRAY", "DEVICES", "JAX'S NAME OF THE OPERATION")]
        for one in sorted(found.collectives, key=lambda one: -one.sent * one.executions):
            named.append((one.kind, f"{one.executions:,}", _mib(one.size), str(one.group), _where(one.source)))
        text += f"\n\n{aligned(named, last_left=True)}"
    if not all(one.is_exact for one in found.collectives):
        text += "\nsome are in loops whose number of turns the compiler does not report: they are counted once"
    return text


def _where(source: str) -> str:
    """Returns JAX's name of an operation without the parts that tell a reader nothing."""
    text = source
    while _WRAPPED.search(text):  # as in transpose(jvp(RoFormer.masks))
        text = _WRAPPED.sub(r"\1", text)
    _, *parts = text.split("/")
    kept = [part for part in parts if part and part not in _NOISE]
    return ("backward: " if "transpose(" in source else "") + ("/".join(kept[-4:]) or "-")


def _compute(found: Plan) -> str:
    from wroformer_jax.planning.plans import published_scores, scores

    share = found.attention_flops / found.flops
    what = "A FORWARD PASS" if found.inference else "A STEP"
    rows: list[Row] = [(f"COMPUTE OF {what}, ALL DEVICES", "TFLOP", "")]
    whole = "products of matrices, the teacher's too" if found.teacher else "products of matrices"
    again = "" if found.inference else "; what remat computes again is not counted"
    rows.append(("all", _tera(found.flops), whole + again))
    attention = f"scores of the model's time attention and what they weigh, {share:.1%}"
    rows.append(("of it time attention", _tera(found.attention_flops), attention))
    entries: list[Row] = [("SCORES OF A HEAD ALONG TIME", "THIS MODEL'S", "FULL ATTENTION'S", "TIMES AS MANY")]
    for what, of in (("of these examples", scores(found.config.model, found.frames)), (_PAPER, published_scores())):
        entries.append((what, f"{of.own:,}", f"{of.full:,}", f"{of.ratio:,.1f}"))
    return f"{aligned(rows, last_left=True)}\n\n{aligned(entries)}"


def _time(estimate: Roofline | None, device_kind: str) -> str:
    if estimate is None:
        return f"TIME OF A STEP\nno estimate: the peak rates of a {device_kind} are not known"
    rows: list[Row] = [
        ("TIME OF A STEP, ESTIMATED", "ms", ""),
        (
            "compute",
            _ms(estimate.compute_seconds),
            f"{_tera(estimate.flops)} TFLOP per device at its peak, with padding and recomputation",
        ),
        (
            "memory",
            _ms(estimate.memory_seconds),
            f"{_three(estimate.hbm_bytes / 1e9)} GB to and from its memory, if only products read and write",
        ),
        (
            "network",
            _ms(estimate.network_seconds),
            f"{_three(estimate.sent_bytes / 1e9)} GB sent, over all its links at once",
        ),
    ]
    return (
        f"{aligned(rows, last_left=True)}\n"
        f"between {_ms(estimate.overlapped)} ms (the three overlap perfectly) and {_ms(estimate.serial)} ms (they do "
        f"not); the bottleneck is {estimate.bound}.\n"
        "An estimate from data sheets, not measured: a real step takes longer."
    )


def time_table(count: TimeCount, *, inference: bool, verbose: bool) -> str:
    """Returns where the time of a program goes, part by part, by both counts.

    Args:
      count: the times.
      inference: of a forward pass.
      verbose: list the operations that take longest.
    """
    from wroformer_jax.planning.parts import PARTS

    what = "A FORWARD PASS" if inference else "A STEP"
    heads = ("ESTIMATE ms", "OF PEAK", "SCHEDULE ms", "OF PEAK", "MOSTLY", "")
    rows: list[Row] = [(f"TIME OF {what} BY PART", *heads)]
    for name, part in (*count.parts.items(), ("all", count.whole)):
        numbers: list[str] = []
        for seconds in (part.estimated, part.scheduled):
            share = count.share(part.flops, seconds)
            numbers += [_ms(seconds), f"{share:.1%}" if share else "-"]
        rows.append((name, *numbers, part.bound, PARTS.get(name, "")))
    text = aligned(rows, last_left=True, rules=(len(rows) - 1,))
    text += (
        "\nTwo counts of the compiled program, not measured. ESTIMATE is the compiler's own; it is close for large "
        "products and\ntoo long for most other work. SCHEDULE has the longest of instructions, matrix products and "
        "memory for each\noperation, without stalls. OF PEAK counts the model's products only. The truth is likely "
        "between them."
    )
    if not inference:
        whole = count.whole
        text += (
            f"\nOf it in the backward pass, with what is computed again: {_ms(whole.backward_estimated)} ms by the "
            f"estimate, {_ms(whole.backward_scheduled)} ms by the schedule."
        )
    if not count.is_exact:
        text += "\nSome loops turn a number of times that is not a constant: they are counted once."
    if verbose:
        named: list[Row] = [("LONGEST OPERATIONS", "TIMES", "ESTIMATE ms", "SCHEDULE ms", "MOSTLY", "PART: JAX'S NAME")]
        for one in count.largest:
            times = [_ms(one.executions * seconds) for seconds in (one.estimated, one.scheduled)]
            where = f"{one.part}: {_where(one.source)}"
            named.append((one.name, f"{one.executions:,}", *times, one.bound, where))
        text += f"\n\n{aligned(named, last_left=True)}"
    return text


def gib(size: int) -> str:
    """Returns bytes in GiB, without the unit."""
    return _three(size / GIB)


def _mib(size: int | float) -> str:
    return _three(size / _MIB)


def _tera(flops: int | float) -> str:
    return _three(flops / 1e12)


def _ms(seconds: float) -> str:
    return _three(1000 * seconds)


def _three(number: float) -> str:
    """Returns at least three digits, none after the point of large numbers, and never a power of ten."""
    decimals = max(0, 2 - math.floor(math.log10(number))) if number >= 1e-6 else 0
    return f"{number:,.{decimals}f}"


def duration(seconds: float) -> str:
    """Returns a length such as "8 s", "1 min 23 s" or "1 h"."""
    if seconds < 100:
        return f"{seconds:.4g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
