"""Checks that the settings share."""

from __future__ import annotations


class FrozenMapping(dict):
    """A mapping that can be hashed, so that a config can be an argument of cached functions; it is never changed."""

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.items())))
