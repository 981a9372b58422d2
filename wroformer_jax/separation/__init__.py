"""From recordings to stems: as arrays, or as a stream of blocks."""

from wroformer_jax.separation.arrays import separate
from wroformer_jax.separation.stream import separate_blocks, stem_names

__all__ = ["separate", "separate_blocks", "stem_names"]
