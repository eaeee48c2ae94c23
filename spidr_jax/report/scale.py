"""Axes: from values to positions, and the ticks that a reader needs."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Scale(NamedTuple):
    """An axis from `low` to `high`, drawn between two positions."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int, whole: bool = False) -> list[tuple[float, str]]:
        """About `count` round values with their labels; only whole numbers where asked for."""
        if self.log and len(ticks := _log_ticks(self.low, self.high)) > 1:
            return ticks  # within less than a factor of 3 they are as of a linear axis
        step = _round_step((self.high - self.low) / count)
        step = max(step, 1) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [number * step for number in range(first, last + 1)]
        return list(zip(values, labels(values, step), strict=True))


def span(values: Iterable[float], log: bool = False) -> tuple[float, float]:
    """The range of an axis that shows all values, none at its very edge."""
    found = [value for value in values if not log or value > 0]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if log:
        room = (high / low) ** 0.06 if high > low else 2.0
        return low / room, high * room
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Counts and shares begin at 0, and an axis that nearly reaches 0 should.
    return (0.0 if 0 <= low < room * 5 else low - room), high + room


def labels(values: Sequence[float], step: float) -> list[str]:
    """Labels of values a `step` apart: as many decimals as tell them apart."""
    largest = max(map(abs, values), default=0.0)
    if largest and (largest >= 1e6 or largest < 1e-3):
        power = math.floor(math.log10(largest))
        digits = max(power - math.floor(math.log10(step) + 1e-9), 0)
        return [_powers(value, digits) if value else "0" for value in values]
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    return [f"{value:,.{decimals}f}" for value in values]


def _powers(value: float, digits: int) -> str:
    mantissa, power = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(power)}"


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 4 else (1, 2, 5)
    values = [factor * 10.0**power for power in decades for factor in factors]
    return [(value, f"{value:g}") for value in values if low <= value <= high]
