"""Plans against what is known of the programs: real ones, tiny, compiled for the devices that are here or for TPUs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from support.tiny_training import QUICKLY_COMPILED as MODEL
from support.tiny_training import tiny_run
from support.tpus import libtpu_environment, needs_libtpu  # noqa: F401

from wroformer_jax.errors import InputError
from wroformer_jax.model.flops import forward_flops
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.parallel.sharding import bytes_per_device
from wroformer_jax.planning.hlo import Collective
from wroformer_jax.planning.parts import PARTS
from wroformer_jax.planning.plans import DoesNotFit, plan, published_scores, scores, sent_bytes, settle, teacher_of
from wroformer_jax.planning.topology import find_topology, local_devices
from wroformer_jax.separation.forward import WHOLE_PLACES
from wroformer_jax.training.state import abstract_batch, abstract_state
from wroformer_jax.training.throughput import step_flops

HERE = tiny_run(model=MODEL, loss={"windows": (256,)}, seconds=0.1, teacher="none.ckpt")
WITH_TEACHER = HERE.with_changes(loss={"weights": {"l1": 1.0, "stft": 0.0, "masks": 1.0}})


@pytest.fixture(scope="module")
def planned():
    """A training step with a teacher, and a forward pass, of one example."""
    made = {}
    for inference in (False, True):
        config, mesh = settle(WITH_TEACHER, local_devices())
        made[inference] = plan(config, mesh, local_devices(), inference=inference)
    return made


def param_bytes(config):
    return sum(4 * leaf.size for leaf in jax.tree.leaves(abstract_params(RoFormer(config))))


def test_memory_by_purpose(planned):
    step, forward = planned[False], planned[True]
    assert step.memory.state == bytes_per_device(abstract_state(step.config, make_mesh(step.config.mesh)))
    assert step.memory.teacher == param_bytes(step.teacher)
    audio = 4 * 2 * step.config.crop_samples
    assert step.memory.inputs >= 2 * audio  # the mixture, and the target of one stem
    assert forward.memory.state == param_bytes(forward.config.model)
    assert forward.memory.teacher == 0
    assert forward.memory.outputs >= audio
    for one in (step, forward):
        parts = (one.memory.state, one.memory.teacher, one.memory.inputs, one.memory.activations, one.memory.outputs)
        assert one.memory.peak == sum(parts)
        assert one.memory.activations > audio
        assert (one.memory.available, one.memory.host) == (None, 0)
        assert one.collectives == ()


def test_a_forward_pass_is_planned_as_a_recording_is_separated_in_one_pass(planned):
    model = planned[True].config.model
    assert (model.places_at_once, model.remat) == (WHOLE_PLACES, "none")
    assert planned[False].config.model.places_at_once == 0


def test_flops_are_those_of_the_settings(planned):
    step, forward = planned[False], planned[True]
    assert step.flops == step_flops(step.config, step.teacher)
    count = forward_flops(forward.config.model, forward.frames)
    assert forward.flops == sum(count.values())
    assert step.attention_flops == 3 * count["time_scores"] == 3 * forward.attention_flops
    assert (step.roofline, step.device_kind) == (None, "cpu")


def test_as_json(planned):
    found = json.loads(json.dumps(planned[False].to_dict()))
    assert found["memory_bytes_per_device"]["peak"] == planned[False].memory.peak
    assert found["published_score_entries"] == {"own": 14_418, "full": 641_601}
    assert (found["program"], found["mesh"]) == ("training step", {"data": 1, "fsdp": 1, "seq": 1})
    assert found["teacher"]["time_mixer"] == "full"


def test_memory_that_is_not_there(planned):
    config, mesh = settle(WITH_TEACHER, local_devices())
    peak = planned[True].memory.peak
    with pytest.raises(DoesNotFit) as refused:
        plan(config, mesh, local_devices()._replace(memory=peak - 1), inference=True)
    assert (refused.value.needed, refused.value.available) == (peak, peak - 1)


def test_one_example_for_each_part_of_the_mesh_unless_told_otherwise():
    accumulating = HERE.with_changes(optimizer={"accumulate": 3}, batch_size=6)
    assert settle(accumulating, local_devices())[0].batch_size == 3
    assert settle(accumulating, local_devices(), batch_size=9)[0].batch_size == 9
    with pytest.raises(InputError, match="batch_size is 4, which does not divide"):
        settle(accumulating, local_devices(), batch_size=4)


def test_the_teacher_is_there_only_if_masks_are_learnt():
    assert teacher_of(HERE) is None
    teacher = teacher_of(WITH_TEACHER)
    assert (teacher.time_mixer, teacher.num_sinks, teacher.dim) == ("full", 0, HERE.model.dim)


def test_the_batch_is_that_of_a_step():
    mesh = make_mesh(HERE.mesh)
    batch = abstract_batch(HERE, mesh)
    assert {name: leaf.shape for name, leaf in batch.items()} == {
        "mixture": (2, 2, HERE.crop_samples),
        "targets": (2, HERE.model.num_stems, 2, HERE.crop_samples),
    }
    assert all(leaf.dtype == jnp.float32 and leaf.sharding.mesh == mesh for leaf in batch.values())


def test_the_scores_of_the_paper():
    assert published_scores() == (14_418, 641_601)
    assert published_scores().ratio == pytest.approx(44.5, abs=0.05)
    assert scores(dataclasses.replace(HERE.model, time_mixer="full"), 10).ratio == 1


def test_what_is_sent_is_multiplied():
    found = [Collective("all-reduce", 100, 4, 3, True, ""), Collective("all-gather", 100, 4, 1, True, "")]
    assert sent_bytes(found) == 3 * 150 + 75


@needs_libtpu
@pytest.mark.usefixtures("libtpu_environment")
def test_a_step_on_a_tpu_slice():
    """State cut in four, parameters gathered, gradients summed, all of it in bounds and with a time."""
    target = find_topology("v5e:2x2")
    config, mesh = settle(HERE.with_changes(mesh={"data": 1, "fsdp": -1}), target)
    found = plan(config, mesh, target)
    assert (found.num_devices, found.config.batch_size, found.mesh["fsdp"]) == (4, 4, 4)
    whole = bytes_per_device(abstract_state(config, make_mesh({"data": 1, "fsdp": 1, "seq": 1})))
    assert whole / 4 < found.memory.state < whole / 2
    assert found.memory.peak < found.memory.available == target.memory
    kinds = {one.kind for one in found.collectives}
    assert {"all-gather", "all-reduce"} <= kinds
    assert all(one.is_exact and one.group == 4 for one in found.collectives)
    gathered = sum(one.size * one.executions for one in found.collectives if one.kind == "all-gather")
    assert 0.5 * param_bytes(config.model) < gathered < 2 * param_bytes(config.model)
    assert 0 < found.roofline.overlapped <= found.roofline.serial < 1


@pytest.mark.slow
@needs_libtpu
@pytest.mark.usefixtures("libtpu_environment")
def test_the_time_of_a_step_on_a_tpu_slice():
    target = find_topology("v5e:2x2")
    config, mesh = settle(WITH_TEACHER.with_changes(mesh={"data": 1, "fsdp": -1}), target)
    found = plan(config, mesh, target, progress=lambda text: None)
    count = found.time
    assert set(PARTS) - {"stft", "inverse_stft", "other"} <= set(count.parts)
    assert count.parts["collectives"].estimated == found.roofline.network_seconds
    assert count.whole.flops == pytest.approx(found.flops / 4)
    for one in (count.parts["time_attention"], count.parts["masks"]):
        assert 0 < one.backward_scheduled < one.scheduled < one.estimated
