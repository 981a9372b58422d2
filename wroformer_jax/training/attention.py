"""The processes of a run agree on the form of attention."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from wroformer_jax.config.model import ModelConfig
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.model.trial import by_scan, checked
from wroformer_jax.parallel.processes import gather, together
from wroformer_jax.training.state import Teacher


def with_checked_attention(
    config: TrainingConfig, mesh: Mesh, teacher: Teacher | None
) -> tuple[TrainingConfig, Teacher | None]:
    """Returns settings and teacher with forms of attention that work on all devices of a run.

    Each process tries the forms on its first device, see `model.trial.checked`. If one fails anywhere, all processes
    take the scan form, since they run one program. All processes must call this.
    """
    config = dataclasses.replace(config, model=_agreed(config.model, mesh))
    if teacher is not None:
        teacher = teacher._replace(model=teacher.model.clone(config=_agreed(teacher.model.config, mesh)))
    return config, teacher


def _agreed(config: ModelConfig, mesh: Mesh) -> ModelConfig:
    device = mesh.local_devices[0]
    own = together(lambda: checked(config, device))
    return by_scan(config, device) if "scan" in gather(own.attention_impl) else own
