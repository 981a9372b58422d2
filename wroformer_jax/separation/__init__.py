"""Separates recordings into stems: whole arrays, or streams of any length."""

from wroformer_jax.separation.arrays import separate
from wroformer_jax.separation.stream import separate_blocks, stem_names

__all__ = ["separate", "separate_blocks", "stem_names"]
