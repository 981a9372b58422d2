"""The attention functions under the name that the README uses; they live in wroformer_jax/model/attention.py."""

from wroformer_jax.model.attention import full_attention, naive_attention, windowed_sink_attention

__all__ = ["full_attention", "naive_attention", "windowed_sink_attention"]
