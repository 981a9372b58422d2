"""Scores of stems, and what they add up to over songs."""

from wroformer_jax.evaluation.results import Results
from wroformer_jax.evaluation.songs import Song, find_songs
from wroformer_jax.evaluation.statistics import bootstrap_interval, summarise

__all__ = ["Results", "Song", "bootstrap_interval", "find_songs", "summarise"]
