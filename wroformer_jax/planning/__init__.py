"""Plans: the memory, communication and time that a run takes of devices that need not exist. Compiles, never runs."""

from wroformer_jax.planning.plans import Plan, plan, settle
from wroformer_jax.planning.search import find_longest_fit
from wroformer_jax.planning.topology import Target, find_topology

__all__ = ["Plan", "Target", "find_longest_fit", "find_topology", "plan", "settle"]
