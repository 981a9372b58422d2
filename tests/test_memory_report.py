"""What XLA's dumps say of a program's memory, and that the compiler is stopped when it has said it."""

import importlib.util
import time

import jax
import pytest
from test_trainer import tiny

from wroformer_jax import memory_report
from wroformer_jax.memory_report import CompilationError, layout
from wroformer_jax.plan import DoesNotFit, plan, settle
from wroformer_jax.topology import Target, topology

REPORT = """Memory Space: default (color=0)
Total bytes: 7721685504 (7.19GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
Memory Space: vmem (color=1)
Total bytes: 117440512 (112.00MiB)
"""
HOST = """Memory Space: cmem (color=5)
Total bytes: 3335454720 (3.11GiB)
"""


def dumped(folder, report, text="HloModule jit_plan_step"):
    (folder / "module_0003.jit_plan_step.after_optimizations-memory-usage-report.txt").write_text(report)
    (folder / "module_0003.jit_plan_step.after_optimizations.txt").write_text(text)


def test_the_report_is_read(tmp_path):
    assert memory_report._found(tmp_path) is None
    dumped(tmp_path, REPORT)
    assert memory_report._found(tmp_path) == ("HloModule jit_plan_step", 7721685504, 0)
    dumped(tmp_path, REPORT + HOST)
    assert memory_report._found(tmp_path).host == 3335454720


def test_a_report_that_is_half_written_is_none(tmp_path):
    for length in (0, 20, 60, len(REPORT) - 60):
        dumped(tmp_path, REPORT[:length])
        assert memory_report._found(tmp_path) is None


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@needs_libtpu
def test_a_slice_is_asked_in_a_process_of_its_own():
    topology("v5e:1x1")
    config = tiny(batch_size=1, seconds=1.0, song_seconds=8.0)
    began = time.monotonic()
    short = layout(config, "v5e:1x1", inference=True)
    assert time.monotonic() - began < 120
    longer = layout(tiny(batch_size=1, seconds=4.0, song_seconds=8.0), "v5e:1x1", inference=True)
    assert short.text.startswith("HloModule jit_plan_forward")
    assert 0 < short.total < longer.total
    assert short.host == 0


# What libtpu 0.0.42.1 said of the published size, 120 s at once.
REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.37G) exceeds "
    "available HBM (15.75G)."
)


def test_a_refusal_is_told_with_its_size(monkeypatch):
    def refuse(*_, **__):
        raise CompilationError(REFUSAL)

    monkeypatch.setattr("wroformer_jax.plan.layout", refuse)
    target = Target("v5e:1x1", jax.devices(), 1, is_topology=True)
    config, mesh = settle(tiny(batch_size=1, seconds=1.0, song_seconds=8.0), target)
    with pytest.raises(DoesNotFit) as refusal:
        plan(config, mesh, target)
    assert refusal.value.needed == int(17.37 * 2**30)
    assert refusal.value.available == int(15.75 * 2**30)


def test_a_process_that_ends_without_a_report_is_an_error():
    with pytest.raises(CompilationError, match="there is no topology 'v5e:3x3'"):
        layout(tiny(batch_size=1, seconds=1.0, song_seconds=8.0), "v5e:3x3", inference=True)
