"""The one line that refuses a value of a config."""

from collections.abc import Iterable
from typing import Any


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
