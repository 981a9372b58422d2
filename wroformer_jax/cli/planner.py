"""Compiles a run at different lengths, and says what fits."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from wroformer_jax.cli.output import say
from wroformer_jax.cli.plan_tables import duration, gib
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from wroformer_jax.config.training import TrainingConfig
    from wroformer_jax.planning.longest_fit import Attempt, Limits
    from wroformer_jax.planning.plans import Plan
    from wroformer_jax.planning.topology import Target

_ANY = 1.0  # tolerance of the length that is found to fit in place of one that does not


class Planner:
    """Compiles a run at different lengths and says so."""

    def __init__(self, config: TrainingConfig, mesh: Mesh, target: Target, *, inference: bool) -> None:
        self.config, self.mesh, self.target, self.inference = config, mesh, target, inference
        self.plans: dict[float, Plan] = {}  # that fit, by the length asked for

    def at(self, seconds: float) -> Plan:
        """The plan of one length.

        Raises:
          InputError: it does not fit; the sentence says by how much, and what does.
        """
        attempt = self._attempt(seconds)
        if not attempt.fits:
            raise InputError(self._refusal(attempt))
        return self.plans[seconds]

    def search(self, tolerance: float) -> Limits:
        """The longest that fits.

        Raises:
          InputError: nothing fits, or the memory of the devices is not known.
        """
        if self.target.memory is None:
            raise InputError("the memory of these devices is not known: name a --topology, or give --memory GIB")
        limits = self._longest_fit(self.config.seconds, tolerance)
        if limits.fits is None:
            raise InputError(self._nothing_fits(limits.too_long))
        return limits

    def _attempt(self, seconds: float) -> Attempt:
        import time

        from wroformer_jax.planning.lengths import with_seconds
        from wroformer_jax.planning.longest_fit import Attempt
        from wroformer_jax.planning.plans import DoesNotFit, plan

        say(f"{duration(seconds)}: compiling ...")
        start = time.perf_counter()
        available = ""
        try:
            found = plan(with_seconds(self.config, seconds), self.mesh, self.target, inference=self.inference)
        except DoesNotFit as refusal:
            attempt = Attempt(seconds, refusal.needed, fits=False)
            what = "does not fit"
        else:
            self.plans[seconds] = found
            attempt = Attempt(seconds, found.memory.peak, fits=True)
            what = "fits" if self.target.memory else "compiled"
        if self.target.memory:
            available = f" of {gib(self.target.memory)}"
        needed = f", {gib(attempt.needed)}{available} GiB a device" if attempt.needed else ""
        say(f"{duration(seconds)}: {what}{needed} ({time.perf_counter() - start:.0f} s)")
        return attempt

    def _longest_fit(self, first: float, tolerance: float, longest: float | None = None, known: Any = ()) -> Limits:
        from wroformer_jax.config.training import LONGEST_CROP
        from wroformer_jax.planning.lengths import shortest
        from wroformer_jax.planning.longest_fit import longest_fit

        return longest_fit(
            self._attempt,
            first,
            shortest=shortest(self.config, self.mesh),
            longest=longest or LONGEST_CROP,
            available=self.target.memory,
            at_rest=self._at_rest,
            tolerance=tolerance,
            known=known,
        )

    @functools.cached_property
    def _at_rest(self) -> int:
        """Bytes of a device that are taken whatever the audio."""
        from wroformer_jax.parallel.sharding import bytes_per_device
        from wroformer_jax.training.state import abstract_state

        state = abstract_state(self.config, self.mesh)
        return bytes_per_device(state.params if self.inference else state)

    def _refusal(self, refused: Attempt) -> str:
        if self.target.memory is None:
            return f"{duration(refused.seconds)} do not fit into {self.target.name}"
        limits = self._longest_fit(refused.seconds, _ANY, refused.seconds, [refused])
        if limits.fits is None:
            return self._nothing_fits(limits.too_long)
        fits = limits.fits.seconds
        return (
            f"{duration(refused.seconds)} do not fit into {self.target.name}{self._by_how_much(refused)}. "
            f"{duration(fits)} fit (--seconds {fits:g}); --seconds max finds the longest. {self._remedies()}"
        )

    def _nothing_fits(self, refused: Attempt) -> str:
        return (
            f"not even {duration(refused.seconds)} fit into {self.target.name}{self._by_how_much(refused)}; the state "
            f"alone is {gib(self._at_rest)} GiB. {self._remedies()}"
        )

    def _remedies(self) -> str:
        """What takes less, on the same devices if the config has not done it yet."""
        model = self.config.model
        settings = []
        if not model.places_at_once and model.remat != "dots":
            settings.append("model.places_at_once=16384")
        if model.remat != "offload" and not self.inference:
            settings.append("model.remat=offload")
        same = f"On the same devices --set {' and --set '.join(settings)} take less; " if settings else ""
        return f"{same}{'larger' if same else 'Larger'} fsdp or seq in --mesh leave less on each"

    def _by_how_much(self, refused: Attempt) -> str:
        if refused.needed is None:
            return ""
        over = refused.needed - self.target.memory
        needed, available = gib(refused.needed), gib(self.target.memory)
        return f": they take {needed} of {available} GiB a device, {gib(over)} GiB too much"
