"""Collectives of compiled programs: kinds, bytes, loops, branches, and the asynchronous forms of TPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import of_a_program

from wroformer_jax.planning.hlo import Collective, collectives
from wroformer_jax.planning.hlo_text import num_bytes

PROGRAM = Path(__file__).parents[1] / "support" / "collective_programs.py"


@pytest.fixture(scope="module")
def compiled():
    """What is found in the functions of collective_programs.py, compiled for four devices."""
    result = subprocess.run(
        [sys.executable, str(PROGRAM)], env=of_a_program(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return {name: [Collective(*one[:6]) for one in found] for name, found in json.loads(result.stdout).items()}


@pytest.mark.parametrize(
    ("kind", "size", "sent"),
    [
        ("all-reduce", 128, 2 * 128 * 3 / 4),
        ("all-gather", 512, 512 * 3 / 4),
        ("reduce-scatter", 256, 256 * 3 / 4),
        ("all-to-all", 128, 128 * 3 / 4),
        ("collective-permute", 128, 128),
    ],
)
def test_kinds_and_bytes(compiled, kind, size, sent):
    [one] = compiled[kind]
    assert (one.kind, one.size, one.sent, one.executions, one.is_exact) == (kind, size, sent, 1, True)
    assert one.group == (2 if kind == "collective-permute" else 4)
    assert "shard_map" in one.source


def test_loops_multiply(compiled):
    found = {one.kind: one for one in compiled["nested"]}
    assert (found["collective-permute"].executions, found["all-reduce"].executions) == (21, 7)
    assert all(one.is_exact for one in found.values())
    [one] = compiled["counted_from_two"]
    assert (one.executions, one.is_exact) == (5, True)


def test_a_loop_whose_turns_nobody_knows_counts_once_and_says_so(compiled):
    [one] = compiled["until"]
    assert (one.executions, one.is_exact) == (1, False)


def test_of_branches_that_which_sends_most(compiled):
    assert [one.kind for one in compiled["branches"]] == ["all-reduce", "all-reduce"]


def test_groups(compiled):
    [one] = compiled["pairs"]
    assert (one.group, one.sent) == (2, 128)
    assert compiled["nothing"] == []


def program(*computations, devices=4):
    """The text of a program whose last computation is that of the program itself."""
    *others, entry = computations
    parts = [f"%{other}\n}}" for other in others] + [f"ENTRY %{entry}\n}}"]
    return f"HloModule jit_step, is_scheduled=true, num_partitions={devices}\n\n" + "\n\n".join(parts) + "\n"


def found_in(line):
    return collectives(program(f"main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n  ROOT {line}"))


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,2]<=[4]", 2),
        ("[1,4]<=[2,2]T(1,0)", 4),
        ("mesh['axis_0'=1,'axis_1'=1,'axis_2'=4] {'axis_2'}", 4),
        ("mesh['a'=2,'b'=2] {'a','b'}", 4),
        ("mesh['a'=4] {'a':(1)2}", 2),
        ("{}", 4),
    ],
)
def test_groups_as_xla_writes_them(groups, size):
    [one] = found_in(f"%r = f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add")
    assert one.group == size


def test_groups_of_one_device_send_nothing():
    assert found_in("%r = f32[8]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%add") == []
    assert found_in("%r = f32[8]{0} collective-permute(%x), source_target_pairs={}") == []


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        ("%s = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}", "all-gather", 128),
        (
            "%s = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            32,
        ),
        ("%s = f32[8]{0:T(128)} all-reduce-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add", "all-reduce", 32),
        (
            "%s = (f32[8]{0:T(8,128)}, /*index=1*/bf16[4]{0:T(8,128)(2,1)S(1)}) all-reduce(%x, /*index=1*/%y), "
            "replica_groups={{0,1,2,3}}, to_apply=%add",
            "all-reduce",
            40,
        ),
    ],
)
def test_what_starts_and_tuples(line, kind, size):
    [one] = found_in(line)
    assert (one.kind, one.size) == (kind, size)


def test_a_start_and_its_end_are_one():
    text = program(
        "wrapped (x: f32[8]) -> f32[2] {\n  %x = f32[8]{0} parameter(0)\n"
        "  ROOT %r = f32[2]{0} reduce-scatter(%x), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}",
        "main (x: f32[8]) -> f32[2] {\n  %x = f32[8]{0} parameter(0)\n"
        "  %s = ((f32[8]{0}), f32[2]{0}) async-start(%x), calls=%wrapped\n"
        "  %u = ((f32[8]{0}), f32[2]{0}) async-update(%s), calls=%wrapped\n"
        "  %a = f32[8]{0} all-reduce-start(%x), replica_groups={{0,1,2,3}}, to_apply=%add\n"
        "  %b = f32[8]{0} all-reduce-done(%a)\n"
        "  ROOT %d = f32[2]{0} async-done(%u), calls=%wrapped",
    )
    assert [(one.kind, one.size) for one in collectives(text)] == [("reduce-scatter", 32), ("all-reduce", 32)]


def test_a_collective_that_a_tpu_spreads_over_fusions_is_one():
    gather = "  %g = f32[32]{0} all-gather(%p), channel_id=62, replica_groups={{0,1,2,3}}, dimensions={0}"
    text = program(
        f"fused.1 (p: f32[8]) -> f32[32] {{\n  %p = f32[8]{{0}} parameter(0)\n{gather}\n"
        '  ROOT %c = f32[32]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"',
        f"async_collective_fusion.2 (p: f32[8]) -> f32[32] {{\n  %p = f32[8]{{0}} parameter(0)\n{gather}\n"
        "  ROOT %m = f32[32]{0} multiply(%g, %g)",
        "all-reduce-scatter.3 (p: f32[8]) -> f32[2] {\n  %p = f32[8]{0} parameter(0)\n"
        "  %r = f32[8]{0} all-reduce(%p), channel_id=63, replica_groups={{0,1,2,3}}, to_apply=%add\n"
        "  ROOT %d = f32[2]{0} dynamic-slice(%r, %p), dynamic_slice_sizes={2}",
        "main (x: f32[8]) -> f32[2] {\n  %x = f32[8]{0} parameter(0)\n"
        "  %a = f32[32]{0} fusion(%x), kind=kCustom, calls=%fused.1\n"
        "  %b = f32[32]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.2\n"
        "  ROOT %c = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3",
    )
    assert [(one.kind, one.size) for one in collectives(text)] == [("all-gather", 128), ("reduce-scatter", 32)]


@pytest.mark.parametrize(
    ("condition", "turns"),
    [
        ("%n = s32[] constant(6)\n  ROOT %c = pred[] compare(%i, %n), direction=LT", 6),
        ("%n = s32[] get-tuple-element(%p), index=2\n  ROOT %c = pred[] compare(%i, %n), direction=LT", 9),
        ("%n = s32[] get-tuple-element(%p), index=3\n  ROOT %c = pred[] compare(%i, %n), direction=LT", None),
        ("%n = s32[] constant(6)\n  ROOT %c = pred[] compare(%i, %n), direction=NE", None),
        ("ROOT %c = pred[] fusion(%i), kind=kLoop, calls=%below_four", 4),
    ],
)
def test_turns_are_read_off_the_condition(condition, turns):
    """TPUs do not tell them, and move constants out of the loop."""
    shape = "(s32[], f32[8]{0}, s32[], s32[])"
    text = program(
        f"turn (p: {shape}) -> {shape} {{\n  %p = {shape} parameter(0)\n"
        "  %x = f32[8]{0} get-tuple-element(%p), index=1\n"
        "  %r = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add\n"
        f"  ROOT %t = {shape} tuple(%p, %r, %p, %p)",
        "below_four (i: s32[]) -> pred[] {\n  %i = s32[] parameter(0)\n  %n = s32[] constant(4)\n"
        "  ROOT %c = pred[] compare(%i, %n), direction=LT",
        f"goes_on (p: {shape}) -> pred[] {{\n  %p = {shape} parameter(0)\n"
        f"  %i = s32[] get-tuple-element(%p), index=0\n  {condition}",
        "main (x: f32[8], m: s32[]) -> f32[8] {\n  %x = f32[8]{0} parameter(0)\n  %m = s32[] parameter(1)\n"
        "  %zero = s32[] constant(0)\n  %nine = s32[] constant(9)\n  %copied = s32[] copy(%nine)\n"
        f"  %start = {shape} tuple(%zero, %x, %copied, %m)\n"
        f"  %w = {shape} while(%start), condition=%goes_on, body=%turn\n"
        "  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1",
    )
    [one] = collectives(text)
    assert (one.executions, one.is_exact) == (turns or 1, turns is not None)


def test_bytes_of_shapes():
    assert num_bytes("f32[2,3]{1,0:T(8,128)}") == 24
    assert num_bytes("(bf16[4]{0}, /*index=1*/(pred[3]{0}, s32[]), u8[2,2]{1,0:T(8,128)(4,1)})") == 8 + 3 + 4 + 4
    assert num_bytes("(f8e4m3fn[5]{0}, c64[2]{0}, s4[4]{0}, token[])") == 5 + 16 + 2
