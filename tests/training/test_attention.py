"""All processes of a run compute attention in the same form, one that works on all of their devices."""

import dataclasses

import pytest
from support.tiny_training import tiny_run

from wroformer_jax.model import implementations
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.training import attention
from wroformer_jax.training.state import Teacher

RUN = tiny_run(model={"attention_impl": "interpret"})
MESH = make_mesh(RUN.mesh)


@pytest.mark.parametrize(("others", "chosen"), [((), "interpret"), (("interpret",), "interpret"), (("scan",), "scan")])
def test_one_process_in_which_a_form_fails_is_enough(monkeypatch, others, chosen):
    """`others` are the forms that other processes found to work."""
    monkeypatch.setattr(attention, "checked", lambda config, device: implementations.settled(config, device.platform))
    monkeypatch.setattr(attention, "gather", lambda own: [own, *others])
    teacher = Teacher(RoFormer(dataclasses.replace(RUN.model, time_mixer="full")), {"sink_tokens": None})
    config, agreed = attention.with_checked_attention(RUN, MESH, teacher)
    assert config.model.attention_impl == agreed.model.config.attention_impl == chosen
    assert agreed.model.config.time_mixer == "full"
    assert agreed.params == teacher.params
    assert dataclasses.replace(config, model=RUN.model) == RUN
    assert attention.with_checked_attention(RUN, MESH, None) == (config, None)
