"""Prepares sets: from stems on disk, or of synthetic songs."""

from wroformer_jax.data.prepare.write import prepare, prepare_synthetic

__all__ = ["prepare", "prepare_synthetic"]
