"""Times of operations: counted by hand for a small program that libtpu compiled (dumps/program.txt)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import of_a_program
from support.tpus import needs_libtpu

from wroformer_jax.parallel.hardware import known_hardware
from wroformer_jax.planning.bundles import Count
from wroformer_jax.planning.tpu_time import operations, speed_of

PROGRAM = (Path(__file__).parent / "dumps" / "program.txt").read_text()
V5E = speed_of("TPU v5 lite", known_hardware("TPU v5 lite"))


COUNTS = {
    "fusion": Count(98_000, 131_072),
    "fusion.11": Count(122_000, 131_072),
    "copy.10": Count(2_000),
    "freq_attention.1": Count(1_946),
    "broadcast_add_fusion": Count(520),
}


def count_of(name, windows):
    return COUNTS.get(name, Count())


@pytest.fixture(scope="module")
def found():
    return {one.name: one for one in operations(PROGRAM, count_of, V5E)}


@pytest.mark.parametrize(
    ("kind", "gigahertz"),
    [("TPU v4", 1.05), ("TPU v5 lite", 1.5), ("TPU v5", 1.75), ("TPU v6 lite", 1.75), ("TPU7x", 2.2)],
)
def test_clocks(kind, gigahertz):
    speed = speed_of(kind, known_hardware(kind))
    assert speed.clock == pytest.approx(gigahertz * 1e9, rel=0.003)


def test_other_devices_have_none():
    assert speed_of("NVIDIA H200", known_hardware("NVIDIA H200")) is None


def test_products(found):
    """512 rows by 4096 x 4096: 17.2 GFLOP, before the loop and five times in it."""
    least = 2 * 512 * 4096**2 / known_hardware("TPU v5 lite").bfloat16
    before, within = found["fusion"], found["fusion.11"]
    assert (before.executions, within.executions) == (1, 5)
    assert (before.part, within.part) == ("time_attention", "time_feed_forward")
    for one, cycles in ((before, 161_656), (within, 137_052)):
        assert one.scheduled == one.products == pytest.approx(least)
        assert one.estimated == pytest.approx(cycles / V5E.clock)
        assert one.bound == "products"
    assert before.memory == pytest.approx((4096**2 + 512 * 4096) * 2 / 819e9)  # its result stays in VMEM
    assert within.memory == 0


def test_a_kernel_has_no_estimate(found):
    kernel = found["freq_attention.1"]
    assert kernel.estimate is None
    assert kernel.estimated == kernel.scheduled == pytest.approx(1_946 / V5E.clock)
    assert kernel.part == "freq_attention"


def test_memory_can_be_what_takes_longest(found):
    one = found["broadcast_add_fusion"]
    assert one.bound == "memory"
    assert one.scheduled == pytest.approx(1024 * 512 * 4 / 819e9)


def test_copies_count_as_far_as_nothing_hides_them(found):
    """The copy of b hides behind the first product, but the result's has only the kernel to hide behind."""
    assert "copy-done.1" not in found
    last = found["copy-done"]
    kernel = found["freq_attention.1"]
    assert last.estimated == last.scheduled == last.wait
    assert last.wait == pytest.approx(512 * 4096 * 2 / 819e9 - kernel.scheduled)


def test_memory_is_not_idle_for_two_copies_at_once(found):
    """The four slices of x come after the copy of b, and together they need 2.6 us."""
    assert not any(name.startswith("slice-done") for name in found)
    slow = {one.name: one for one in operations(PROGRAM, lambda name, windows: Count(), V5E)}
    waits = [slow[name].wait for name in slow if name.startswith("slice-done")]
    assert sum(waits) == pytest.approx(1024 * 512 * 4 / 819e9)


EXCHANGE = """HloModule exchange

%wrapped (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %swap = f32[8,128]{1,0:T(8,128)} all-to-all(%p), replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %sum = f32[8,128]{1,0:T(8,128)} all-reduce-start(%a), replica_groups={{0,1}}
  %summed = f32[8,128]{1,0:T(8,128)} all-reduce-done(%sum)
  %begun = ((f32[8,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) async-start(%summed), calls=%wrapped
  %ended = f32[8,128]{1,0:T(8,128)} async-done(%begun), calls=%wrapped
  ROOT %result = f32[8,128]{1,0:T(8,128)} negate(%ended)
}
"""


def test_collectives_are_counted_by_what_they_send_not_here():
    assert [one.name for one in operations(EXCHANGE, count_of, V5E)] == ["result"]


BRANCHES = """HloModule branches

%short (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %once = f32[8,128]{1,0:T(8,128)} negate(%p)
}

%long (q: f32[8,128]) -> f32[8,128] {
  %q = f32[8,128]{1,0:T(8,128)} parameter(0)
  %first = f32[8,128]{1,0:T(8,128)} negate(%q)
  ROOT %second = f32[8,128]{1,0:T(8,128)} negate(%first)
}

ENTRY %main (a: f32[8,128], which: pred[]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %which = pred[]{:T(512)} parameter(1)
  ROOT %taken = f32[8,128]{1,0:T(8,128)} conditional(%which, %a, %a), true_computation=%short, false_computation=%long
}
"""


def test_the_longer_branch_counts():
    assert [one.name for one in operations(BRANCHES, count_of, V5E)] == ["first", "second"]


@pytest.mark.slow
@needs_libtpu
def test_libtpu_compiles_a_product_a_loop_and_a_kernel(tmp_path):
    """The product of 4096 x 4096 in bfloat16 has 137 GFLOP: 0.698 ms at the peak of a v5e."""
    script = Path(__file__).parents[1] / "support" / "tpu_program.py"
    environment = of_a_program()
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")  # libtpu may be there
    command = [sys.executable, str(script), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)

    floor = 2 * 4096**3 / 197e12
    [product] = [one for one in found if one["part"] == "time_feed_forward" and one["products"]]
    assert product["products"] == pytest.approx(floor, rel=0.02)
    assert product["scheduled"] == pytest.approx(floor, rel=0.02)
    assert product["estimated"] == pytest.approx(0.722e-3, rel=0.02)
    [looped] = [one for one in found if one["part"] == "time_attention" and one["products"]]
    assert (looped["executions"], looped["products"]) == (5, pytest.approx(floor / 8, rel=0.02))
    [kernel] = [one for one in found if one["estimate"] is None and one["part"] == "freq_attention" and one["bundles"]]
    # Each turn loads, computes and stores four registers of 8 x 128 values, one bundle at least for each store.
    assert 8 * 16 * 4 < kernel["bundles"] * V5E.clock < 8 * 16 * 4 * 5
