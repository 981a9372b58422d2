"""What a run would take of devices that need not be there. This room compiles and never runs."""

from wroformer_jax.planning.longest_fit import longest_fit
from wroformer_jax.planning.plans import Plan, plan, settle
from wroformer_jax.planning.topology import Target

__all__ = ["Plan", "Target", "longest_fit", "plan", "settle"]
