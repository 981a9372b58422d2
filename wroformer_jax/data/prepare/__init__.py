"""From stems on disk, or from synthetic songs, to a prepared set."""

from wroformer_jax.data.prepare.write import prepare, prepare_synthetic

__all__ = ["prepare", "prepare_synthetic"]
