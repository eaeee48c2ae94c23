"""Pieces of the page: sections, tables, and grids of charts with a table of their last values.

Every text that comes from a run is escaped here or in `charts`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

from spidr_jax.eval.metrics import Key, key_text, parse_key
from spidr_jax.report.charts import Series, letter, line_chart
from spidr_jax.report.runs import Point, Run
from spidr_jax.report.scale import span

STEPS = "step"
Reference = Callable[[str, float], list[Point]]


class Metric(NamedTuple):
    """A chart of one of metrics.jsonl's values."""

    name: str
    title: str
    unit: str
    log: bool = False


def section(title: str, *parts: str, how: str = "") -> str:
    """A section of the page.

    Args:
        title: its heading.
        parts: HTML; where all are empty, the section only says how to fill it.
        how: what it then says.
    """
    anchor = re.sub(r"\W+", "-", title.lower())
    body = "".join(parts) or paragraph(f"Not in this report: {how}")
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>'


def paragraph(text: str) -> str:
    """Text that is escaped."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of texts, which scrolls by itself where it is too wide."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide" tabindex="0"><table class="{kind}">{body}</table></div>'


def details(summary: str, body: str) -> str:
    """A part that is closed at first."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def heading(run: Run, number: int, runs: Sequence[Run]) -> str:
    """A run's name, with its letter where there are several."""
    return f"{letter(number)}: {run.name}" if len(runs) > 1 else run.name


def per_layer(
    runs: Sequence[Run], name: str, title: str, unit: str, dataset: str = ""
) -> list[Metric]:
    """The charts of a metric's layers."""
    keys = {parse_key(text) for run in runs for text in run.names}
    layers = sorted(k.layer for k in keys if k[::2] == (dataset, name) and isinstance(k.layer, int))
    return [Metric(key_text(Key(dataset, k, name)), f"Layer {k}: {title}", unit) for k in layers]


def grid(
    runs: Sequence[Run],
    metrics: Sequence[Metric],
    *,
    same_axis: bool = False,
    reference: Reference | None = None,
) -> str:
    """Charts over steps with all runs in each.

    Args:
        runs: what is drawn.
        metrics: a chart for each of which a run has a finite value.
        same_axis: whether all get the same vertical axis, to be compared.
        reference: gives the published curve of a metric's name up to a step.

    Returns:
        HTML, empty where no run has any of it.
    """
    metrics = [m for m in metrics if any(_plottable(run, m) for run in runs)]
    steps = [line["step"] for run in runs for line in run.lines]
    if not metrics:
        return ""
    lines = {m.name: _series(runs, m, max(steps), reference) for m in metrics}
    values = (y for many in lines.values() for s in many for _, y in s.points if y is not None)
    y_range = span(values) if same_axis else None
    charts = [
        line_chart(
            m.title,
            lines[m.name],
            STEPS,
            m.unit,
            log=m.log,
            x_range=(0, max(steps)),
            y_range=y_range,
        )
        for m in metrics
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _plottable(run: Run, metric: Metric) -> bool:
    points = run.series(metric.name)
    return any(y is not None and (y > 0 or not metric.log) for _, y in points)


def _series(
    runs: Sequence[Run], metric: Metric, last: float, reference: Reference | None
) -> list[Series]:
    drawn = [
        Series(run.name, number, points)
        for number, run in enumerate(runs)
        if (points := run.series(metric.name))
    ]
    if reference and (published := reference(metric.name, last)):
        drawn.insert(0, Series("published", -1, published))
    return drawn


def last_values(runs: Sequence[Run], metrics: Sequence[Metric]) -> str:
    """The table beside charts: the last value of each metric of which there is one."""
    metrics = [m for m in metrics if any(run.last(m.name) for run in runs)]
    if not metrics:
        return ""
    head = ["value", *(heading(run, number, runs) for number, run in enumerate(runs))]
    rows = [[f"{m.title} ({m.name})", *(last_text(run, m.name) for run in runs)] for m in metrics]
    return details("Last values as a table", table(head, rows))


def last_text(run: Run, name: str) -> str:
    """The last finite value of a metric, with its step where a later line exists."""
    found = run.last(name)
    if found is None:
        return "none"
    step, value = found
    return number(value) if step == run.lines[-1]["step"] else f"{number(value)} at step {step}"


def number(value: float) -> str:
    """Six digits, and more of what they would round to a whole number, such as a decay near 1."""
    text = f"{value:.6g}"
    return text if value == round(value) or float(text) != round(value) else f"{value:.10g}"
