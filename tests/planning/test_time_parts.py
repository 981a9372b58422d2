"""Sums of times by part, their shares of the peak rate, and their picture."""

import dataclasses
import json

import pytest
from support.tiny_training import tiny_run

from wroformer_jax.model.flops import forward_flops, num_frames
from wroformer_jax.planning.plans import teacher_of
from wroformer_jax.planning.time_parts import time_count, useful_flops
from wroformer_jax.planning.time_picture import save_times
from wroformer_jax.planning.tpu_time import Operation
from wroformer_jax.training.throughput import step_flops

PRODUCT = Operation("fusion", "fusion", "masks", "jit(f)/jvp(masks)/dot", 3, 0.004, 0.001, 0.002, 0.0005)
COPY = Operation("copy", "copy", "masks", "jit(f)/transpose(jvp(masks))/copy", 1, 0.001, 0.0001, 0.0, 0.0008)
KERNEL = Operation("kernel", "custom-call", "time_scores", "", 2, None, 0.003, 0.001, 0.0, is_exact=False)


@pytest.fixture
def count():
    return time_count([KERNEL, PRODUCT, COPY], network=0.005, flops={"masks": 1.3e9}, peak=1e12)


def test_parts_are_in_the_order_of_the_program(count):
    assert list(count.parts) == ["time_scores", "masks", "collectives"]


def test_sums(count):
    masks = count.parts["masks"]
    assert masks.estimated == pytest.approx(3 * 0.004 + 0.001)
    assert masks.scheduled == pytest.approx(3 * 0.002 + 0.0008)
    assert (masks.backward_estimated, masks.backward_scheduled) == (0.001, 0.0008)
    assert masks.bounds == pytest.approx({"products": 0.006, "memory": 0.0008})
    assert masks.bound == "products"
    kernel = count.parts["time_scores"]
    assert kernel.estimated == kernel.scheduled == pytest.approx(0.006)
    whole = count.whole
    assert whole.estimated == pytest.approx(0.013 + 0.006 + 0.005)
    assert whole.scheduled == pytest.approx(0.0068 + 0.006 + 0.005)
    assert sum(whole.bounds.values()) == pytest.approx(whole.scheduled)


def test_shares_of_the_peak(count):
    masks = count.parts["masks"]
    assert count.share(masks.flops, masks.estimated) == pytest.approx(1.3e9 / 0.013 / 1e12)
    assert count.share(0.0, 1.0) is None


def test_a_loop_of_unknown_turns(count):
    assert not count.is_exact
    assert time_count([PRODUCT], 0.0, {}, 1e12).is_exact


def test_as_json(count):
    found = json.loads(json.dumps(count.to_dict()))
    assert found["whole"]["estimated"] == count.whole.estimated
    assert [one["name"] for one in found["largest_operations"]] == ["fusion", "kernel", "copy"]
    assert found["parts"]["masks"]["estimated_share_of_peak"] == pytest.approx(0.1)


def test_useful_work_is_that_of_the_settings():
    config = tiny_run(batch_size=2, teacher="none.ckpt", loss={"weights": {"masks": 1.0}})
    teacher = teacher_of(config)
    step = useful_flops(config, teacher, inference=False)
    assert sum(step.values()) == step_flops(config, teacher)
    once = useful_flops(config, None, inference=True)
    forward = forward_flops(config.model, num_frames(config.model, config.crop_samples))
    assert sum(once.values()) == 2 * sum(forward.values())
    assert step["time_attention"] == 3 * once["time_attention"] == 6 * forward["time_projections"]


def test_the_picture(count, tmp_path):
    save_times(tmp_path / "time.png", count, title="forward pass")
    first = (tmp_path / "time.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    longer = time_count([dataclasses.replace(PRODUCT, executions=9)], 0.0, {}, 1e12)
    save_times(tmp_path / "time.png", longer, title="forward pass")
    assert (tmp_path / "time.png").read_bytes() != first
