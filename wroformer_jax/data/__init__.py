"""Sets of songs and batches of training examples, as NumPy arrays. This room knows neither models nor JAX."""

from wroformer_jax.data.loading import Batches, Share, batches
from wroformer_jax.data.record_set import RecordSet

__all__ = ["Batches", "RecordSet", "Share", "batches"]
