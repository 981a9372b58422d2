"""Compiles a run at different lengths, reports each attempt, and words what fits and what does not."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wroformer_jax.cli.output import say
from wroformer_jax.cli.plan_tables import duration, gib
from wroformer_jax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from wroformer_jax.config.training import TrainingConfig
    from wroformer_jax.planning.plans import Plan
    from wroformer_jax.planning.search import Attempt, Limits
    from wroformer_jax.planning.topology import Target

_ANY = 1.0  # tolerance of the length that is suggested in place of one that does not fit


class Planner:
    """Compiles a run at different lengths for a target, and keeps the plans that fit.

    With `timed` the plan that is asked for has the time of each part; those of a search for a length have not.
    """

    def __init__(
        self, config: TrainingConfig, mesh: Mesh, target: Target, *, inference: bool, timed: bool = False
    ) -> None:
        self.config, self.mesh, self.target, self.inference, self.timed = config, mesh, target, inference, timed
        self.plans: dict[float, Plan] = {}  # by the length that was asked for, in seconds

    def at(self, seconds: float) -> Plan:
        """Returns the plan of one length.

        Raises:
          InputError: it does not fit; the message says by how much, and which length does.
        """
        attempt = self._attempt(seconds, timed=self.timed)
        if not attempt.fits:
            raise InputError(self._refusal(attempt))
        return self.plans[seconds]

    def longest(self, tolerance: float) -> tuple[Plan, Limits]:
        """Returns the plan of the longest audio that fits, and the end of the search for it.

        Args:
          tolerance: distance of the longest that fits from the shortest that does not, as a fraction.

        Raises:
          InputError: nothing fits, or the memory of the devices is not known.
        """
        if self.target.memory is None:
            raise InputError("the memory of these devices is not known: name a --topology, or give --memory GIB")
        limits = self._search(self.target.memory, self.config.seconds, tolerance)
        if limits.fits is None:
            raise InputError(self._nothing_fits(limits))
        if self.timed:
            self._attempt(limits.fits.seconds, timed=True)
        return self.plans[limits.fits.seconds], limits

    def _attempt(self, seconds: float, *, timed: bool = False) -> Attempt:
        from wroformer_jax.planning import plans
        from wroformer_jax.planning.lengths import with_seconds
        from wroformer_jax.planning.search import Attempt

        say(f"{duration(seconds)}: compiling{' to the end, which takes minutes' if timed else ''} ...")
        start = time.perf_counter()
        asked = {"progress": lambda text: say(f"{duration(seconds)}: {text}")} if timed else {}
        try:
            config = with_seconds(self.config, seconds)
            found = plans.plan(config, self.mesh, self.target, inference=self.inference, **asked)
        except plans.DoesNotFit as refusal:
            attempt = Attempt(seconds, refusal.needed, fits=False)
            outcome = "does not fit"
        else:
            self.plans[seconds] = found
            attempt = Attempt(seconds, found.memory.peak, fits=True)
            outcome = "fits" if self.target.memory else "compiled"
        available = f" of {gib(self.target.memory)}" if self.target.memory else ""
        needed = f", {gib(attempt.needed)}{available} GiB a device" if attempt.needed else ""
        say(f"{duration(seconds)}: {outcome}{needed} ({time.perf_counter() - start:.0f} s)")
        return attempt

    def _search(
        self,
        memory: int,
        first: float,
        tolerance: float,
        longest: float | None = None,
        known: Sequence[Attempt] = (),
    ) -> Limits:
        from wroformer_jax.config.training import LONGEST_CROP
        from wroformer_jax.planning.lengths import shortest_crop
        from wroformer_jax.planning.search import Bounds, find_longest_fit

        bounds = Bounds(
            shortest=shortest_crop(self.config, self.mesh),
            longest=longest or LONGEST_CROP,
            available=memory,
            at_rest=self._at_rest,
            tolerance=tolerance,
        )
        return find_longest_fit(self._attempt, first, bounds, known)

    @functools.cached_property
    def _at_rest(self) -> int:
        """Bytes per device that the state takes, whatever the length of the audio."""
        from wroformer_jax.parallel.sharding import bytes_per_device
        from wroformer_jax.training.state import abstract_state

        state = abstract_state(self.config, self.mesh)
        return bytes_per_device(state.params if self.inference else state)

    def _refusal(self, refused: Attempt) -> str:
        if self.target.memory is None:
            return f"{duration(refused.seconds)} do not fit into {self.target.name}"
        limits = self._search(self.target.memory, refused.seconds, _ANY, refused.seconds, [refused])
        if limits.fits is None:
            return self._nothing_fits(limits)
        fits = limits.fits.seconds
        return (
            f"{duration(refused.seconds)} do not fit into {self.target.name}{self._excess(refused)}. "
            f"{duration(fits)} fit (--seconds {fits:g}); --seconds max finds the longest. {self._remedies()}"
        )

    def _nothing_fits(self, limits: Limits) -> str:
        refused = limits.too_long
        assert refused is not None, "a search in which nothing fits ends at a length that does not"
        return (
            f"not even {duration(refused.seconds)} fit into {self.target.name}{self._excess(refused)}; the state "
            f"alone is {gib(self._at_rest)} GiB. {self._remedies()}"
        )

    def _remedies(self) -> str:
        """Suggests settings that save memory on the same devices, unless the config has them, and a larger mesh."""
        model = self.config.model
        settings = []
        if not model.places_at_once and model.remat != "dots":
            settings.append("model.places_at_once=16384")
        if model.remat != "offload" and not self.inference:
            settings.append("model.remat=offload")
        same = f"On the same devices --set {' and --set '.join(settings)} take less; " if settings else ""
        return f"{same}{'larger' if same else 'Larger'} fsdp or seq in --mesh leave less on each"

    def _excess(self, refused: Attempt) -> str:
        if refused.needed is None or self.target.memory is None:
            return ""
        needed, available = gib(refused.needed), gib(self.target.memory)
        return (
            f": they take {needed} of {available} GiB a device, {gib(refused.needed - self.target.memory)} GiB too much"
        )
