"""Lines over steps, drawn by Matplotlib as SVG that takes its colours from the page."""

import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from itertools import count
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spidr_jax.report.runs import Point

# Of the light page; page.css has the same names for a dark one.
INK, SOFT, RULE, BAD = "#1b1b1c", "#6a6a6b", "#dfdfe0", "#c0392c"
RUNS = ("#0072b3", "#d55e01", "#009e74", "#cc79a8", "#b87d02", "#3a96d0")
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", BAD: "var(--bad)"}
_VARIABLES |= {colour: f"var(--c{i})" for i, colour in enumerate(RUNS)}
_LAYERS = ("#2f7fc1", "#9b5fb5", "#d9662b")  # the first, the middle, the last
_STRETCHES = 150  # of a long line: their means are drawn, over a band from lowest to highest
_SALT = count()
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.xmargin": 0.0,
    "grid.color": RULE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
}


class Line(NamedTuple):
    """A line of a chart: its label, points, colour and weight."""

    label: str
    points: Sequence[Point]
    colour: str
    width: float = 1.6
    dashed: bool = False
    alpha: float = 1.0
    marked: bool = True  # where the points are few


def picture(width: float, height: float, described: str, draw: Callable[[Figure], None]) -> str:
    """An SVG element.

    Args:
        width: width of the view box; the page scales it.
        height: height of the view box.
        described: alternative text.
        draw: fills the figure.
    """
    style = STYLE | {"svg.hashsalt": str(next(_SALT))}  # no two ids are the same
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that only the browser has
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        draw(figure)
        file = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg[svg.index("<svg") :], count=1)
    svg = re.sub(r' id="[a-zA-Z]+\w*_\d+"|<!--.*?-->|(?<=>)\s+(?=<)', "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d[0]).replace("\n", ""), svg)
    svg = re.sub("#[0-9a-f]{6}", lambda colour: _VARIABLES.get(colour[0], colour[0]), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(described)}"', 1)


def layer_colours(number: int) -> list[str]:
    """Colours from the first to the last of some layers."""
    shades = LinearSegmentedColormap.from_list("layers", _LAYERS)
    return [to_hex(shade) for shade in shades(np.linspace(0, 1, number))]


def thin(points: Sequence[Point]) -> np.ndarray:
    """Step, mean, lowest and highest of the points as they are, or of stretches of many."""
    values = np.array([(x, np.nan if y is None else y) for x, y in points], dtype=float)
    many = len(values) > 2 * _STRETCHES
    parts = np.array_split(values, _STRETCHES if many else len(values))
    return np.array([
        [*part.mean(axis=0), np.fmin.reduce(part[:, 1]), np.fmax.reduce(part[:, 1])]
        for part in parts
    ])  # fmt: skip


def lines(axes: Axes, drawn: Sequence[Line], title: str) -> None:
    """Draw lines and beside them their labels, the highest end first; None is a gap."""
    axes.set_title(title)
    ends = []
    for line in drawn:
        step, mean, low, high = thin(line.points).T
        (artist,) = axes.plot(
            step, mean, color=line.colour, lw=line.width, alpha=line.alpha, label=line.label,
            ls=(0, (4, 2)) if line.dashed else "solid",
            marker="o" if len(step) < 16 and line.marked else None, ms=2 * line.width,
        )  # fmt: skip
        if len(step) < len(line.points) and len(drawn) <= 4:
            axes.fill_between(step, low, high, color=line.colour, alpha=0.18, lw=0)
        if line.label:
            ends.append((next((y for _, y in reversed(line.points) if y is not None), 0), artist))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_short)
    axes.legend(
        handles=[artist for _, artist in sorted(ends, key=lambda end: -end[0])],
        loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelcolor="linecolor",
        handlelength=0, handletextpad=0.4, borderpad=0, labelspacing=0.2,
    )  # fmt: skip


def _short(value: float, _: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:,.6g}"
