"""Meshes and shardings; and training on a mesh gives the numbers of one device."""

import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from support.helpers import free_port, of_a_program
from support.tiny_training import tiny_run

from wroformer_jax.errors import InputError
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import arrange_devices, check_batch, make_mesh
from wroformer_jax.parallel.sharding import part_of
from wroformer_jax.training.state import abstract_state, model_shardings

# Sizes (data, fsdp, seq), and the number of accumulated parts of a batch. All must agree with the first, one device.
MESHES = (((1, 1, 1), 1), ((2, 2, 1), 1), ((1, 4, 1), 1), ((4, 1, 1), 1), ((1, 1, 4), 1), ((2, 1, 1), 2))

PROGRAM = Path(__file__).parents[1] / "support" / "mesh_steps.py"


def run(folder, meshes, processes=1):
    """Runs mesh_steps.py in some processes; returns the rows that the first prints, with the gradients it wrote."""
    settings = tiny_run(batch_size=4, seconds=0.1, loss={"windows": (64,)}, optimizer={"ema": 0.9}, steps=20).to_dict()
    command = [sys.executable, str(PROGRAM), json.dumps(settings), json.dumps(meshes), str(folder)]
    port = [str(free_port())] if processes > 1 else []
    running = [
        subprocess.Popen(
            [*command, *port, *([str(process)] if port else [])],
            env=of_a_program(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    printed = [process.communicate(timeout=400) for process in running]
    assert not any(process.returncode for process in running), printed
    found = [json.loads(line) for line in printed[0][0].splitlines() if line.startswith("{")]  # Gloo chats
    for row in found:
        with np.load(folder / row["file"]) as gradients:
            row["gradients"] = dict(gradients)
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one_process"), MESHES)


def assert_agrees(row, reference):
    np.testing.assert_allclose(row["losses"][0], reference["losses"][0], rtol=1e-5)
    np.testing.assert_allclose(row["losses"], reference["losses"], rtol=1e-4)
    assert row["losses"][0] - row["losses"][-1] > 0.01  # it learns, so that the trace means something
    assert row["gradients"].keys() == reference["gradients"].keys()
    for name, gradient in reference["gradients"].items():
        apart = abs(row["gradients"][name] - gradient).max()
        assert apart <= 1e-5 * abs(gradient).max(), (name, apart, abs(gradient).max())


@pytest.mark.slow
def test_every_mesh_gives_the_numbers_of_one_device(rows):
    assert [row["mesh"] for row in rows] == [list(sizes) for sizes, _ in MESHES]
    for row in rows[1:]:
        assert_agrees(row, rows[0])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_device(rows, tmp_path):
    meshes = MESHES[1:5]  # of all four devices; in the last each process has half of the time
    found = run(tmp_path, meshes, processes=2)
    assert [row["mesh"] for row in found] == [list(sizes) for sizes, _ in meshes]
    for row in found:
        assert_agrees(row, rows[0])


@pytest.mark.slow
def test_fsdp_cuts_the_state(rows):
    by_mesh = {tuple(row["mesh"]): row["bytes"] / rows[0]["bytes"] for row in rows}
    assert by_mesh[4, 1, 1] == 1
    assert by_mesh[2, 2, 1] < 0.6  # what does not divide stays whole
    assert by_mesh[1, 4, 1] < 0.4


def fake_mesh(data, fsdp):
    """Returns a mesh without devices; only its shape is used."""
    return jax.sharding.AbstractMesh((data, fsdp, 1), ("data", "fsdp", "seq"))


@pytest.mark.parametrize("fsdp", [2, 8, 64, 256])
def test_the_published_size_falls_as_one_over_fsdp(fsdp):
    from wroformer_jax.config.model import ModelConfig

    model = RoFormer(ModelConfig())
    shardings, shapes = model_shardings(model, fake_mesh(1, fsdp)), abstract_params(model)
    parts = jax.tree.map(lambda leaf, sharding: int(np.prod(sharding.shard_shape(leaf.shape))), shapes, shardings)
    whole = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # Band split and sinks, 4 M of 234 M parameters with padding, have no axis that 256 divides.
    assert sum(jax.tree.leaves(parts)) < whole / fsdp + (0.018 if fsdp == 256 else 1e-3) * whole


def test_optimiser_state_lies_as_the_parameters_do():
    config = tiny_run(optimizer={"ema": 0.9})
    state = abstract_state(config, make_mesh(config.mesh))
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
    moments = state.opt_state.inner_states["trained"].inner_state[1].mu
    for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
        twin = state.params
        for entry in path:
            twin = twin[entry.key]
        assert (leaf.shape, leaf.sharding) == (twin.shape, twin.sharding)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (
            (2, 1, 1),
            r"mesh is data=2, fsdp=1, seq=1, which takes 2 devices, but there are 1: sizes that .* are 1$",
        ),
        ((-1, 3, 1), r"which takes a multiple of 3 devices, but there are 1: .* are 1$"),
        ((-1, -1, 1), r"only one axis can be -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, sentence):
    with pytest.raises(InputError, match=sentence):
        make_mesh(dict(zip(("data", "fsdp", "seq"), sizes, strict=True)))


@pytest.mark.slow
def test_fsdp_and_seq_cut_the_state_together(rows):
    by_mesh = {tuple(row["mesh"]): row["bytes"] for row in rows}
    assert by_mesh[1, 1, 4] == by_mesh[1, 4, 1]


SHAPE = (4, 2, 800)  # shape of the mixtures of a batch


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([(0, 2, 0, 400), (0, 2, 400, 800)], ((0, 1), range(800))),
        ([(2, 4, 400, 800)], ((2, 3), range(400, 800))),
        ([(0, 4, 0, 800)] * 3, ((0, 1, 2, 3), range(800))),
        # As in a torus: rows apart from each other, and a hole in the time, which is loaded, too.
        ([(3, 4, 0, 200), (0, 1, 0, 200), (3, 4, 400, 600), (0, 1, 400, 600)], ((0, 3), range(600))),
    ],
)
def test_what_a_process_loads(indices, expected):
    assert part_of([place(*index) for index in indices], SHAPE) == expected


def place(first, last, start, stop):
    return slice(first, last), slice(None), slice(start, stop)


def chips(x, y, slices=1):
    """Returns the chips of some v5e slices as JAX describes them, four per host."""
    return [
        types.SimpleNamespace(
            platform="tpu", device_kind="TPU v5 lite", slice_index=number, coords=(column, row, 0), core_on_chip=0,
            process_index=column // 2 + x // 2 * (row // 2 + y // 2 * number), id=column + x * (row + y * number),
        )
        for number in range(slices) for row in range(y) for column in range(x)
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(256, 1, 1), (1, 256, 1), (16, 16, 1), (64, 4, 1), (32, 8, 1), (8, 32, 1)])
def test_any_mesh_fits_the_torus(shape):
    arranged = arrange_devices(shape, chips(16, 16))
    assert arranged.shape == shape
    assert sorted(device.id for device in arranged.flat) == list(range(256))


@pytest.mark.parametrize(("shape", "most"), [((32, 1, 8), 1), ((4, 1, 64), 1.5), ((4, 8, 8), 1), ((1, 1, 256), 4.5)])
def test_in_a_torus_a_process_loads_at_most_so_many_times_what_its_chips_need(shape, most):
    """Neighbours in time lie along a way through the torus, which may pass a host more than once."""
    data, fsdp, seq = shape
    batch = (2 * data * fsdp, 2, 800 * seq)
    needed = {}
    for (copy, part, stretch), chip in np.ndenumerate(arrange_devices(shape, chips(16, 16))):
        row, start = 2 * (copy * fsdp + part), 800 * stretch
        needed.setdefault(chip.process_index, []).append(place(row, row + 2, start, start + 800))
    assert len(needed) == 64
    for indices in needed.values():
        rows, samples = part_of(indices, batch)
        for own in indices:
            assert set(range(*own[0].indices(batch[0]))) <= set(rows)
            assert (samples.start, samples.stop) == (min(samples.start, own[2].start), max(samples.stop, own[2].stop))
        assert len(rows) * len(samples) <= most * 2 * 800 * len(indices)


def test_each_slice_has_the_whole_model():
    arranged = arrange_devices((4, 8, 1), chips(4, 4, slices=2))
    assert arranged.shape == (4, 8, 1)
    assert sorted(device.id for device in arranged.flat) == list(range(32))
    for row in arranged:
        assert len({device.slice_index for device in row.flat}) == 1
    with pytest.raises(InputError, match=r"mesh\.data is 1, which does not divide over 2 slices"):
        arrange_devices((1, 32, 1), chips(4, 4, slices=2))


def test_minus_one_is_the_rest():
    assert dict(make_mesh({"data": -1, "fsdp": 1, "seq": 1}).shape) == {"data": 1, "fsdp": 1, "seq": 1}


@pytest.mark.parametrize(("accumulate", "sentence"), [(1, "expected a multiple of 4$"), (2, "multiple of 8$")])
def test_a_batch_that_does_not_divide_is_refused(accumulate, sentence):
    check_batch(4 * accumulate, fake_mesh(2, 2), accumulate=accumulate)
    with pytest.raises(
        InputError, match=rf"batch_size is 6, which does not divide over the mesh \(data=2 x fsdp=2.*{sentence}"
    ):
        check_batch(6, fake_mesh(2, 2), accumulate=accumulate)
