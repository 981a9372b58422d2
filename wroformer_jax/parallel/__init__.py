"""Processes, meshes of devices, shardings of arrays, and time cut over devices. Nothing here knows the model."""

from wroformer_jax.parallel.context_parallel import TimeParts, cut_time, padded_samples
from wroformer_jax.parallel.mesh import check_batch, make_mesh
from wroformer_jax.parallel.processes import Preemption, connect, is_first, together
from wroformer_jax.parallel.time_axis import WHOLE, TimeAxis

__all__ = [
    "WHOLE",
    "Preemption",
    "TimeAxis",
    "TimeParts",
    "check_batch",
    "connect",
    "cut_time",
    "is_first",
    "make_mesh",
    "padded_samples",
    "together",
]
