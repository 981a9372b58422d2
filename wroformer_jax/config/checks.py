"""The checks that all settings share, and the way from settings to plain JSON values and back.

Each check raises an InputError of one sentence that names the field, the value found and what is expected.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from wroformer_jax.errors import InputError, suggestion

Settings = TypeVar("Settings")


class FrozenMapping(dict):
    """A mapping that can be hashed, so that a config can be an argument of cached functions; it is never changed."""

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.items())))


def check_whole_number(name: str, value: Any, *, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Refuses all but whole numbers from `minimum` to `maximum`, which are allowed themselves."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise InputError(f"{name} is {value!r}, expected a whole number {_bounds(minimum, maximum)}".rstrip())


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Refuses all but finite numbers in the range; `minimum` and `maximum` are in it, `above` and `below` are not."""
    if not is_number(value) or not minimum <= value <= maximum or not above < value < below:
        bounds = _bounds(minimum, maximum, above, below)
        raise InputError(f"{name} is {value!r}, expected a number {bounds}".rstrip())


def check_probability(name: str, value: Any) -> None:
    """Refuses all but numbers from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}, expected a probability from 0 to 1")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuses all but the allowed values."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def check_flag(name: str, value: Any) -> None:
    """Refuses all but True and False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}, expected true or false")


def check_text(name: str, value: Any, expected: str) -> None:
    """Refuses all but text; `expected` says what the text should be."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}, expected {expected}")


def checked_tuple(name: str, value: Any, items: str) -> tuple[Any, ...]:
    """Returns a list as a tuple, and lists in it as tuples: JSON has lists, a hashable config needs tuples.

    Raises:
      InputError: `value` is not a list; the message says that it should hold `items`.
    """
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {value!r}, expected a list of {items}")
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are not known, and suggests the nearest one that is.

    Args:
      what: the kind of field, such as "model field".
      names: the names to check.
      known: the names that exist.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"unknown {what} {name!r}{suggestion(name, known)}")


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def to_dict(settings: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass as plain JSON types; nested dataclasses become dicts."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def from_dict(cls: Callable[..., Settings], fields: Mapping[str, Any], *, what: str, prefix: str = "") -> Settings:
    """Builds a dataclass of settings from plain values; fields that are not given get their defaults.

    Args:
      cls: the dataclass. A field that is a dataclass itself takes a mapping of its fields.
      fields: values by name.
      what: the kind of field, for error messages, such as "model field".
      prefix: the names of the groups that `fields` is in, for error messages, such as "loss.weights.".

    Raises:
      InputError: a field is unknown (the nearest known name is suggested) or has an impossible value.
    """
    kinds: dict[str, Any] = typing.get_type_hints(cls)
    check_known(what, [prefix + name for name in fields], [prefix + name for name in kinds])
    values = {}
    for name, value in fields.items():
        kind = kinds[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
            if not isinstance(value, Mapping):
                first = dataclasses.fields(kind)[0].name
                raise InputError(f"{prefix}{name} is {value!r}, expected its fields, such as {prefix}{name}.{first}")
            own_from_dict = getattr(kind, "from_dict", None)  # some classes also know former names
            value = (
                own_from_dict(value) if own_from_dict else from_dict(kind, value, what=what, prefix=f"{prefix}{name}.")
            )
        elif kind is float and type(value) is int:
            value = float(value)  # a whole number is as good as any where a fraction is expected (--config.seconds=4)
        values[name] = value
    return cls(**values)


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields with the values of `changes` in their place; nested mappings are merged in the same way."""
    both = dict(fields)
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(both.get(name), Mapping):
            value = merged(both[name], value)
        both[name] = value
    return both


def flattened(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields as one flat mapping, under names such as "augmentation.remix"."""
    flat = {}
    for name, value in fields.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _bounds(
    minimum: float = -math.inf, maximum: float = math.inf, above: float = -math.inf, below: float = math.inf
) -> str:
    limits = (("above", above), ("of at least", minimum), ("of at most", maximum), ("below", below))
    return " and ".join(f"{words} {limit:.12g}" for words, limit in limits if math.isfinite(limit))
