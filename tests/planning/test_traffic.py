"""Bytes that operations move, by the shapes, tiles and memory spaces in XLA's text."""

import pytest

from wroformer_jax.planning.hlo_text import parse
from wroformer_jax.planning.traffic import hbm_bytes, moved, padded_bytes, transferred

TEXT = """HloModule small

%sliced (p.0: f32[64,512], p.1: s32[]) -> f32[8,512] {
  %p.0 = f32[64,512]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %taken = f32[8,512]{1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={8,512}
}

%updated (q.0: f32[64,512], q.1: f32[8,512], q.2: s32[]) -> f32[64,512] {
  %q.0 = f32[64,512]{1,0:T(8,128)} parameter(0)
  %q.1 = f32[8,512]{1,0:T(8,128)} parameter(1)
  %q.2 = s32[]{:T(128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  %doubled = f32[8,512]{1,0:T(8,128)} add(%q.1, %q.1)
  ROOT %placed = f32[64,512]{1,0:T(8,128)} dynamic-update-slice(%q.0, %doubled, %q.2, %zero.1)
}

ENTRY %main (a: f32[64,512], i: s32[]) -> f32[64,512] {
  %a = f32[64,512]{1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %piece = f32[8,512]{1,0:T(8,128)} fusion(%a, %i), kind=kLoop, calls=%sliced
  %near = f32[64,512]{1,0:T(8,128)S(1)} copy(%a)
  %from_near = f32[64,512]{1,0:T(8,128)} negate(%near)
  %start = (f32[8,512]{1,0:T(8,128)S(1)}, f32[8,512]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%piece)
  %done = f32[8,512]{1,0:T(8,128)S(1)} copy-done(%start)
  %start.1 = ((f32[64,512]{1,0:T(8,128)}), f32[16,512]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %plain = f32[64,512]{1,0:T(8,128)} dynamic-update-slice(%a, %piece, %i, %i)
  %pair = (f32[64,512]{1,0:T(8,128)}, f32[64,512]{1,0:T(8,128)}) tuple(%a, %from_near)
  ROOT %result = f32[64,512]{1,0:T(8,128)} fusion(%a, %piece, %i), kind=kLoop, calls=%updated
}
"""
WHOLE, PIECE = 64 * 512 * 4, 8 * 512 * 4


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[60,809,384]{2,1,0:T(8,128)}", 60 * 816 * 384 * 4),
        ("bf16[60,809,384]{2,1,0:T(8,128)(2,1)}", 60 * 816 * 384 * 2),
        ("bf16[60,809,8,64]{3,1,2,0:T(8,128)(2,1)}", 60 * 816 * 8 * 128 * 2),  # a head of 64 fills half a tile
        ("f32[384]{0:T(512)}", 512 * 4),
        ("s32[]{:T(128)}", 4),
        ("pred[8,128]{1,0:T(8,128)(4,1)}", 8 * 128),
        ("f32[5,6]{1,0}", 5 * 6 * 4),
        ("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, token[])", 2 * 8 * 128 * 4),
    ],
)
def test_tiles_are_padded(shape, size):
    assert padded_bytes(shape) == size


def test_what_lies_on_the_chip_moves_nothing():
    assert hbm_bytes("(f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)})") == 8 * 128 * 4


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("piece", PIECE + PIECE),  # reads only what it slices
        ("near", WHOLE),
        ("from_near", WHOLE),
        ("plain", PIECE + PIECE),
        ("result", PIECE + PIECE),  # in place: reads the update, writes as much
        ("pair", 0),
    ],
)
def test_an_operation(name, size):
    module, entry = parse(TEXT)
    assert moved(module, entry, module[entry][name]) == size


def test_asynchronous_copies():
    module, entry = parse(TEXT)
    assert transferred(module[entry]["start"]) == PIECE
    assert transferred(module[entry]["start.1"]) == 2 * PIECE
