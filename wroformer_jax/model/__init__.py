"""The network: pure functions of parameters and audio. This room knows nothing of files or processes."""

from wroformer_jax.model.attention import full_attention, naive_attention, windowed_sink_attention
from wroformer_jax.model.params import (
    abstract_params,
    add_windowed_sinks,
    init_params,
    logical_axes,
    num_parameters,
    trainable_mask,
)
from wroformer_jax.model.roformer import RoFormer

__all__ = [
    "RoFormer",
    "abstract_params",
    "add_windowed_sinks",
    "full_attention",
    "init_params",
    "logical_axes",
    "naive_attention",
    "num_parameters",
    "trainable_mask",
    "windowed_sink_attention",
]
