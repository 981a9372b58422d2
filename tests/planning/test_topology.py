"""TPU slices by name, what is said where there are none, and what XLA says of programs that are too large."""

import importlib.util
import re

import jax
import pytest
from support.tpus import libtpu_environment, needs_libtpu  # noqa: F401

from wroformer_jax.errors import InputError
from wroformer_jax.parallel.hardware import known_hardware
from wroformer_jax.planning.topology import TOPOLOGIES, find_topology, known_topologies, local_devices, out_of_memory


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v9:2x2", "v5e:banana", "", "v5litepod-16", "v4:2x2", "v5e:32x32"])
def test_an_unknown_one_gets_a_list_of_those_there_are(name):
    with pytest.raises(InputError, match=re.escape(f"there is no topology {name!r}")) as refused:
        find_topology(name)
    assert known_topologies() in str(refused.value)
    for generation, shapes in TOPOLOGIES.items():
        assert f"{generation}: {shapes[0]}, {shapes[1]}" in str(refused.value)


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps 'libtpu==[\d.]+\.\*'"):
        find_topology("v5e:2x2")


def test_devices_that_are_here():
    target = local_devices()
    assert (target.name, target.memory) == ("local CPU", None)
    assert target.devices == jax.devices()


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 22.43G "
            "of 15.75G hbm. Exceeded hbm capacity by 6.68G.",
            (int(22.43 * 2**30), int(15.75 * 2**30)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (1.00T) "
            "exceeds available HBM (15.75G).",
            (2**40, int(15.75 * 2**30)),
        ),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.", (None, None)),
        ("INTERNAL: something else", None),
    ],
)
def test_refusals_of_xla(message, numbers):
    assert out_of_memory(RuntimeError(message)) == numbers


@needs_libtpu
@pytest.mark.usefixtures("libtpu_environment")
@pytest.mark.parametrize(
    ("name", "devices", "gib"),
    [
        ("v5e:1x1", 1, 15.75),
        ("v5e:2x4", 8, 15.75),
        ("v4:2x2x1", 4, 30.75),
        ("v6e:4x4", 16, 31.25),
        ("tpu7x:2x2x1", 8, 94),
    ],
)
def test_slices_with_their_memory(name, devices, gib):
    target = find_topology(name)
    assert len(target.devices) == devices
    assert known_hardware(target.devices[0].device_kind) is not None
    assert target.memory / 2**30 == pytest.approx(gib, abs=1)
    assert target.memory <= 1.1 * known_hardware(target.devices[0].device_kind).hbm


@needs_libtpu
@pytest.mark.usefixtures("libtpu_environment")
@pytest.mark.parametrize("generation", list(TOPOLOGIES))
def test_every_generation_is_known_to_libtpu(generation):
    kinds = {find_topology(f"{generation}:{shape}").devices[0].device_kind for shape in TOPOLOGIES[generation][:5]}
    assert len(kinds) == 1
    assert known_hardware(*kinds)
