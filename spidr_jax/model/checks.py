"""Dataclasses from what a user or a file says, and the one line that refuses a value."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Schema = TypeVar("Schema")


def check_fields(config: Any, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Check (field, whether its value is usable, what is allowed) one after another.

    Raises:
        ValueError: naming the first field that is not usable, its value and what is allowed.
    """
    for name, ok, allowed in checks:
        if not ok:
            raise ValueError(f"{name} = {getattr(config, name)!r}: allowed is {allowed}")


def is_integer(value: Any, least: int, most: int = 2**31 - 1) -> bool:
    """Whether a value is a whole number within these bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def build(kind: type[Schema], values: Mapping[str, Any], prefix: str = "config.") -> Schema:
    """The checked config of what flags, a config file or a checkpoint say.

    Args:
        kind: the schema.
        values: values by field; what is absent has its default.
        prefix: what its fields' names follow in messages: a section's and a dot, or a file.

    Raises:
        ValueError: a field does not exist or its value is not usable; one line names field, value
            and what is allowed.
    """
    hints = typing.get_type_hints(kind)
    given = {}
    for name in values:
        field = f"{prefix}{name}"
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{field}: there is no such field{hint}")
        value = values[name]
        if dataclasses.is_dataclass(hints[name]):
            if not hasattr(value, "items"):
                raise ValueError(f"{field} = {value!r}: it is a section, with fields of its own")
            given[name] = build(hints[name], value, f"{prefix}{name}.")
            continue
        try:
            given[name] = _typed(value, hints[name])
        except TypeError:
            allowed = getattr(hints[name], "__name__", str(hints[name]))
            allowed = str(hints[name]) if typing.get_args(hints[name]) else allowed
            raise ValueError(f"{field} = {value!r}: allowed is {allowed}") from None
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _typed(value: Any, kind: Any) -> Any:
    """The value as one of a type, lists as tuples and integers as floats.

    Raises:
        TypeError: it is none.
    """
    kinds = typing.get_args(kind)
    if typing.get_origin(kind) is types.UnionType:
        return None if value is None else _typed(value, kinds[0])
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) != len(value):
            raise TypeError
        return tuple(map(_typed, value, kinds))
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value
