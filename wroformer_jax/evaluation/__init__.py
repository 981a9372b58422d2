"""Scores of separated stems against the true ones, and their means and intervals over songs."""

from wroformer_jax.evaluation.results import Results
from wroformer_jax.evaluation.songs import ReferenceSong, find_songs
from wroformer_jax.evaluation.statistics import bootstrap_interval, summarise

__all__ = ["ReferenceSong", "Results", "bootstrap_interval", "find_songs", "summarise"]
