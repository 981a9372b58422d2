"""Counts of instructions in libtpu's dumps. dumps/ has a kernel's, with a grid of 8 around a loop of 16."""

from pathlib import Path

from wroformer_jax.planning.bundles import Count, Dumps, count, read_duplicates

DUMPS = Path(__file__).parent / "dumps"
KERNEL = (DUMPS / "1-kernel-01-final_bundles.txt").read_text()


def test_a_kernel():
    """Bundles 0xd to 0x1a are the inner loop, the rest of 0x1 to 0x21 the outer one; two stand before and after."""
    inner, outer = 0x1A - 0xD + 1, 0x21
    assert count(KERNEL.splitlines()) == Count(2 + 8 * (outer - inner + 16 * inner), 0, True)


def test_a_loop_that_counts_in_larger_steps():
    stepped = KERNEL.replace("%s130_s16 = sadd.s32 1,", "%s130_s16 = sadd.s32 4,")
    assert count(KERNEL.splitlines()).bundles - count(stepped.splitlines()).bundles == 8 * 14 * (16 - 4)


def test_a_loop_of_unknown_turns_counts_once_and_says_so():
    unknown = KERNEL.replace("%s130_s16, 16 /* loop exit test */", "%s130_s16, %s7")
    found = count(unknown.splitlines())
    assert not found.is_exact
    assert found.bundles == 2 + 8 * 0x21


def test_the_number_of_windows_can_be_told():
    once, twice = (count(KERNEL.splitlines(), windows).bundles for windows in (1, 2))
    assert twice - once == once - 2


ROWS = """
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %10 = vmatmul.bf16.gmra.mxu0 %v1  ;;  %11 = vmatmul.bf16.gmra.mxu1 %v1 } /* Start region 1 */
   0x2   : > { %12 = vmatmul.f32.gmra.mxu0 %v1  ;;  %s3 = sadd.s32 1, %s2 }
   0x3   : > { %p1 = scmp.ge.s32.totalorder %s3, 5 /* loop exit test */ }
   0x4   :  { %13 = sbr.rel (!%p1) target = $region1 }
   0x5   :  { %14 = vmatmul.mubr.bf16.gmra.mrb[0].mxu1 %v1 } /* exit bundle: %fusion = fusion(%a) */
"""


def test_bundles_with_the_mark_of_the_outer_loop_in_the_midst_of_an_inner_one():
    """They hold an instruction that the scheduler has moved there."""
    moved = KERNEL.replace("0x10   : >> {", "0x10   : > {").replace("0x1a   : >> {", "0x1a   : > {")
    assert moved != KERNEL
    most = count(KERNEL.splitlines()).bundles
    assert count(moved.splitlines()) == Count(most - 8 * 15, 0, True)  # only what follows the branch back is outside


def test_rows_through_the_busiest_matrix_unit():
    """A register has 16 rows of bfloat16 or 8 of float32."""
    assert count(ROWS.splitlines()) == Count(2 + 5 * 4, 5 * (16 + 8), True)
    busier = ROWS.replace(
        "0x5   :  {", "0x5   :  {" + "".join(f" %{n} = vmatmul.bf16.gmra.mxu1 %v1 ;;" for n in range(9))
    )
    assert count(busier.splitlines()).rows == 5 * 16 + 10 * 16


def test_a_folder_of_dumps(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)

    write("17-fusion.1-01-final_bundles.txt", KERNEL)
    write("19-fusion.1-01-final_bundles.txt", ROWS)  # tried again
    write("19-fusion.1-00-schedule-analysis_final_bundles.txt", "Schedule analysis:")
    write(
        "11-TLP-00-deduplication-map.txt", "key:fusion.1\nordinal:3\nequivalent_hlos[size=2]:\n  fusion.1\n  fusion.7\n"
    )
    dumps = Dumps(tmp_path)
    assert dumps.of("fusion.1", None) == dumps.of("fusion.7", None) == count(ROWS.splitlines())
    assert dumps.of("tuple", None) == Count()


def test_duplicates():
    lines = [
        "key:<top-inlining-caller>",
        "equivalent_hlos[size=0]:",
        "key:a",
        "equivalent_hlos[size=2]:",
        "  a",
        "  b.2",
    ]
    assert read_duplicates("\n".join(lines)) == {"a": "a", "b.2": "a"}
