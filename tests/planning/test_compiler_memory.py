"""The memory in XLA's dumps of a program, and the end of the compiler that writes them."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from support.helpers import of_a_program
from support.tiny_training import tiny_run
from support.tpus import needs_libtpu

from wroformer_jax.errors import InputError
from wroformer_jax.planning.compiler_memory import CompilationError, layout, read_layout
from wroformer_jax.planning.plans import DoesNotFit, plan, refusal, settle
from wroformer_jax.planning.topology import Target, find_topology

REPORT = """Memory Space: default (color=0)
Total bytes: 7721685504 (7.19GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
Memory Space: vmem (color=1)
Total bytes: 117440512 (112.00MiB)
"""
HOST = """Memory Space: cmem (color=5)
Total bytes: 3335454720 (3.11GiB)
"""


def dumped(folder, report, text="HloModule jit_plan_step", seconds_ago=10):
    for name, content in (("-memory-usage-report", report), ("", text)):
        path = folder / f"module_0003.jit_plan_step.after_optimizations{name}.txt"
        path.write_text(content)
        os.utime(path, (time.time() - seconds_ago,) * 2)


def test_the_report_is_read(tmp_path):
    assert read_layout(tmp_path) is None
    dumped(tmp_path, REPORT)
    assert read_layout(tmp_path) == ("HloModule jit_plan_step", 7721685504, 0)
    dumped(tmp_path, REPORT + HOST)
    assert read_layout(tmp_path).host == 3335454720
    dumped(tmp_path, REPORT.replace("vmem (color=1)", "smem (color=2)"))  # as for a v4
    assert read_layout(tmp_path).total == 7721685504


def test_a_report_that_may_be_half_written_is_none(tmp_path):
    dumped(tmp_path, REPORT, seconds_ago=0)
    assert read_layout(tmp_path) is None
    assert read_layout(tmp_path, has_ended=True).total == 7721685504
    for length in (0, 20, 40):
        dumped(tmp_path, REPORT[:length])
        assert read_layout(tmp_path) is None
        assert read_layout(tmp_path, has_ended=True) is None


PARENT = """
import json, os, subprocess, sys, time
child = "import sys, time; from pathlib import Path; from wroformer_jax.planning.compile_child import end_with; "
child += "end_with(int(sys.argv[1]), Path(sys.argv[2])); print('watching', flush=True); time.sleep(100)"
process = subprocess.Popen([sys.executable, "-c", child, str(os.getpid()), sys.argv[1]], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_a_compiler_whose_parent_was_killed_ends_and_tidies_up(tmp_path):
    folder = tmp_path / "dumps"
    folder.mkdir()
    command = [sys.executable, "-c", PARENT, str(folder)]
    with subprocess.Popen(command, env=of_a_program(), stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 20
    while folder.exists() or Path(f"/proc/{child}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1"])
def test_a_slice_is_asked_in_a_process_of_its_own(name):
    find_topology(name)
    config = tiny_run(batch_size=8, seconds=1.0, synthetic={"song_seconds": 8.0}, mesh={"data": -1})
    short = layout(config, name, inference=True)
    longer = layout(dataclasses.replace(config, seconds=4.0), name, inference=True)
    assert short.text.startswith("HloModule jit_plan_forward")
    assert 0 < short.total < longer.total
    assert short.host == 0


# What libtpu 0.0.42.1 said of the published size, 120 s at once.
REFUSAL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.37G) exceeds "
    "available HBM (15.75G)."
)


def test_a_refusal_is_told_with_its_size():
    target = Target("v5e:1x1", jax.devices(), 1, is_topology=True)
    refused = refusal(CompilationError(REFUSAL), target)
    assert isinstance(refused, DoesNotFit)
    assert (refused.needed, refused.available) == (int(17.37 * 2**30), int(15.75 * 2**30))
    other = refusal(CompilationError("a trace\nValueError: no such layout\n"), target)
    assert str(other) == "v5e:1x1: the program cannot be compiled: ValueError: no such layout"


@pytest.mark.slow
def test_a_process_that_ends_without_a_report_is_an_error():
    config = tiny_run(batch_size=1, seconds=1.0, synthetic={"song_seconds": 8.0})
    with pytest.raises(CompilationError, match="there is no topology 'v5e:3x3'"):
        layout(config, "v5e:3x3", inference=True)
    target = Target("v5e:3x3", jax.devices(), 1, is_topology=True)
    with pytest.raises(InputError, match=r"^v5e:3x3: the program cannot be compiled: .*there is no topology 'v5e:3x3'"):
        plan(*settle(config, target), target, inference=True)
