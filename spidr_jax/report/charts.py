"""Line charts as SVG: one size, read by colour, dash, marker and the letter at each line's end.

Positions are in the units of the view box; the page scales it to the width there is.
"""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from spidr_jax.report.runs import Point
from spidr_jax.report.scale import Scale, span

WIDTH, HEIGHT = 340, 206
_RIGHT, _TOP, _BOTTOM = 316, 10, 170
_COLOURS = 6
STRETCHES = 150  # of a long line: their means are drawn, over a band from lowest to highest
_MANY = 30  # points from which on only some get a marker
_LETTER = 10  # least distance of two letters
_DIGIT = 6.8  # width of one of a label, at most
_MARKERS = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
    "M-3 -3h6v6h-6z",
    "M0 -4L3.8 3h-7.6z",
    "M0 -4L4 0L0 4L-4 0z",
    "M0 4L3.8 -3h-7.6z",
    "M-3.5 -1h2.5v-2.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5z",
)


class Series(NamedTuple):
    """A line of a chart; `style` is the run's number, -1 for the published curve."""

    label: str
    style: int
    points: Sequence[Point]

    @property
    def letter(self) -> str:
        """What stands at the line's end."""
        return letter(self.style)


class Place(NamedTuple):
    """A point of a line as drawn, or a stretch of it; `y` is None where the line has a gap."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


Drawn = tuple[Series, list[Place]]


def letter(style: int) -> str:
    """A, B, C, ... of the runs; "ref" of the published curve."""
    if style < 0:
        return "ref"
    return chr(65 + style % 26) + (str(style // 26) if style >= 26 else "")


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A figure with one chart; None among the values is a gap.

    Args:
        title: what is shown.
        series: the lines, at least one with a value.
        x_label: of the axis, whose values are whole numbers.
        y_label: of the axis, with its unit.
        log: whether the vertical axis is logarithmic; values from 0 down are then gaps.
        x_range: of the axis instead of that of the points.
        y_range: of the axis instead of that of the points.
    """
    shown = [(line, thin(_drawable(line.points, log))) for line in series]
    points = [(x, y) for line in series for x, y in _drawable(line.points, log) if y is not None]
    x_low, x_high = x_range or (min(x for x, _ in points), max(x for x, _ in points))
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    low, high = y_range or span((y for _, y in points), log)
    y = Scale(low, high, _BOTTOM, _TOP, log)
    rows = y.ticks(6, whole=all(value == int(value) for _, value in points))
    x = Scale(x_low, x_high, max(12 + _DIGIT * max(len(s) for _, s in rows), 40), _RIGHT)
    unit = f"{y_label}, log scale" if log else y_label
    text = "; ".join(_describe(line) for line in series)
    drawn = [
        *_axes(x, y, rows, x_label),
        *(_line(*line, x, y) for line in shown),
        *_letters(shown, x, y),
    ]
    return (
        f"<figure><figcaption>{escape(title)} <small>{escape(unit)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-hover="{_hover(shown, x)}">'
        f"<title>{escape(title)}</title><desc>{escape(f'{unit} over {x_label}. {text}')}</desc>"
        f'{"".join(drawn)}<path class="cursor" d=""/></svg><p class="readout"></p></figure>'
    )


def thin(points: Sequence[Point]) -> list[Place]:
    """Points as they are, or, of many, the mean, lowest and highest of each stretch."""
    if len(points) <= 2 * STRETCHES:
        return [Place(x, y) for x, y in points]
    edges = [round(i * len(points) / STRETCHES) for i in range(STRETCHES + 1)]
    return [_stretch(points[start:stop]) for start, stop in pairwise(edges)]


def _stretch(points: Sequence[Point]) -> Place:
    middle = sum(x for x, _ in points) / len(points)
    finite = [y for _, y in points if y is not None]
    if not finite:
        return Place(middle, None)
    mean = sum(finite) / len(finite) if len(finite) == len(points) else None  # a gap stays one
    return Place(middle, mean, min(finite), max(finite))


def swatch(style: int) -> str:
    """A piece of a run's line, for a legend."""
    marker = "" if style < 0 else f'<path class="m" d="{_MARKERS[style % _COLOURS]}"/>'
    return (
        f'<svg class="swatch {_classes(style)}" viewBox="-20 -6 40 12" aria-hidden="true">'
        f'<path class="l" d="M-20 0H20"/>{marker}</svg>'
    )


def _classes(style: int) -> str:
    if style < 0:
        return "ref"
    return f"c{style % _COLOURS} d{(style + style // _COLOURS) % _COLOURS}"


def _drawable(points: Sequence[Point], log: bool) -> list[Point]:
    return [(x, None if y is not None and log and y <= 0 else y) for x, y in points]


def _describe(line: Series) -> str:
    finite = [(x, y) for x, y in line.points if y is not None]
    if not finite:
        return f"{line.label}: no value"
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    return f"{line.label}: {y0:.6g} at {x0:g}, {y1:.6g} at {x1:g}"


def _axes(x: Scale, y: Scale, rows: Sequence[tuple[float, str]], x_label: str) -> Iterator[str]:
    left = x.start
    for value, label in rows:
        yield f'<path class="grid" d="M{left:.1f} {y(value):.1f}H{_RIGHT}"/>'
        yield f'<text class="y" x="{left - 4:.1f}" y="{y(value) + 3.5:.1f}">{label}</text>'
    for value, label in x.ticks(5, whole=True):
        yield f'<path class="grid" d="M{x(value):.1f} {_BOTTOM}v4"/>'
        yield f'<text class="x" x="{x(value):.1f}" y="{_BOTTOM + 15}">{label}</text>'
    yield f'<path class="axis" d="M{left:.1f} {_BOTTOM}H{_RIGHT}"/>'
    yield f'<text class="x" x="{(left + _RIGHT) / 2:.1f}" y="{HEIGHT - 5}">{escape(x_label)}</text>'


def _line(line: Series, places: Sequence[Place], x: Scale, y: Scale) -> str:
    path, pen = [], "M"
    at = [None if place.y is None else (x(place.x), y(place.y)) for place in places]
    for point in at:
        if point is not None:
            path.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "M" if point is None else "L"
    band = "".join(
        f"M{x(place.x):.1f} {y(place.low):.1f}V{y(place.high):.1f}"
        for place in places
        if place.low is not None and place.high is not None
    )
    body = f'<path class="band" d="{band}"/>' if band else ""
    body += f'<path class="l" d="{"".join(path)}"/>'
    if line.style >= 0:
        shape = _MARKERS[line.style % _COLOURS]
        body += "".join(
            f'<path class="m" transform="translate({px:.1f} {py:.1f})" d="{shape}"/>'
            for px, py in _marked(at)
        )
    return f'<g class="{_classes(line.style)}">{body}</g>'


def _marked(places: Sequence[tuple[float, float] | None]) -> list[tuple[float, float]]:
    """All points of a short line, some of a long one, and all that no line meets."""
    every = max(math.ceil(len(places) / 6), 1) if len(places) > _MANY else 1
    padded = [None, *places, None]
    return [
        place
        for i, place in enumerate(places)
        if place is not None and (i % every == 0 or padded[i] is padded[i + 2] is None)
    ]


def _letters(shown: Sequence[Drawn], x: Scale, y: Scale) -> Iterator[str]:
    """The letter at each line's end, moved up where it would cover another."""
    if len(shown) < 2:
        return
    ends = []
    for line, places in shown:
        found = [(x(place.x), y(place.y)) for place in places if place.y is not None]
        if found:
            ends.append((*found[-1], line))
    written: list[tuple[float, float]] = []
    for right, bottom, line in sorted(ends, key=lambda end: -end[1]):
        while clash := [b for r, b in written if abs(r - right) < 25 and abs(b - bottom) < _LETTER]:
            bottom = min(clash) - _LETTER
        written.append((right, bottom))
        yield (
            f'<text class="end {_classes(line.style)}" x="{right + 5:.1f}" y="{bottom + 3:.1f}">'
            f"{line.letter}</text>"
        )


def _hover(shown: Sequence[Drawn], x: Scale) -> str:
    """What the page's script reads out under the pointer."""
    lines = [[line.letter, *_columns(places)] for line, places in shown]
    box = [round(x.start, 1), _RIGHT, _TOP, _BOTTOM]
    content = {"x": [x.low, x.high], "box": box, "lines": lines}
    return escape(json.dumps(content, separators=(",", ":")))


def _columns(places: Sequence[Place]) -> list[list[float | None]]:
    """Steps and values, and of stretches their lowest and highest."""
    columns = [
        [None if v is None else _short(v) for v in column] for column in zip(*places, strict=True)
    ]
    return columns if any(v is not None for v in columns[2]) else columns[:2]


def _short(value: float) -> float:
    """Few digits, but whole numbers as they are."""
    return value if value == int(value) else float(f"{value:.4g}")
