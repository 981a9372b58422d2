"""The part of the model that an operation belongs to, by the names that the model gives its parts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from support.tiny_training import QUICKLY_COMPILED, tiny_run

from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.planning.hlo_text import parse
from wroformer_jax.planning.parts import PARTS, is_backward, part_of, source_of

PROGRAM = (Path(__file__).parent / "dumps" / "program.txt").read_text()


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("jit(f)/RoFormer/while/body/time_attention/mixer_0/to_qkv/dot_general", "time_attention"),
        ("jit(f)/RoFormer/while/body/time_attention/mixer_0/time_scores/while/body/exp", "time_scores"),
        ("jit(f)/transpose(jvp(masks))/MaskEstimator/mul", "masks"),
        ("jit(f)/jvp(teacher)/RoFormer.masks/time_attention/dot_general", "teacher"),
        ("jit(f)/jvp(RoFormer.masks)/while/body/add", ""),
        ("freq_attention/mixer_0/norm/reduce_sum", "freq_attention"),
        ("jit(f)/loss/mul;jit(f)/optimizer/add", "loss"),
        ("", ""),
    ],
)
def test_names(source, part):
    assert part_of(source) == part


def test_the_backward_pass():
    assert is_backward("jit(f)/transpose(jvp(masks))/mul")
    assert is_backward("jit(f)/while/body/rematted_computation/time_attention/mul")
    assert not is_backward("jit(f)/jvp(masks)/mul")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("fusion", "time_attention"),  # that of the product inside, not of the slice
        ("copy", "freq_attention"),  # of what it copies
        ("copy-done", "time_feed_forward"),
        ("a.1", "time_attention"),  # of what uses it
    ],
)
def test_operations_of_a_program(name, part):
    module, entry = parse(PROGRAM)
    assert part_of(source_of(module, entry, module[entry][name])) == part


def test_the_model_names_its_parts():
    config = tiny_run(model=QUICKLY_COMPILED).model
    model = RoFormer(config)
    audio = jnp.zeros((1, config.channels, 3200))
    lowered = jax.jit(lambda params: model.apply({"params": params}, audio)).lower(abstract_params(model))
    found = {part_of(name) for name in lowered.as_text(debug_info=True).split('"')}
    assert found >= set(PARTS) - {"loss", "teacher", "optimizer", "collectives", "other"}
