"""Sections of unit quality: over steps from metrics.jsonl, over layers from evaluation files."""

import re
from collections import defaultdict
from collections.abc import Sequence

from spidr_jax.report.charts import Series, line_chart
from spidr_jax.report.markup import (
    Metric,
    details,
    grid,
    heading,
    last_values,
    paragraph,
    per_layer,
    section,
    table,
)
from spidr_jax.report.runs import Run
from spidr_jax.report.scale import span

_MEASURED = re.compile(r"(.+)_(pnmi|abx\w*?|phone_purity|cluster_purity)_\d+")
_UNITS = {"pnmi": "share of H(phone)", "abx": "error rate", "purity": "probability"}


def over_training(runs: Sequence[Run]) -> str:
    """PNMI, and ABX where it is measured, over layers at the last step and over steps."""
    found = [match for run in runs for n in run.names() if (match := _MEASURED.fullmatch(n))]
    parts, every = [], []
    for name, kind in sorted({match.groups() for match in found}):
        title = f"{_words(kind)} on {name}"
        metrics = per_layer(runs, f"{name}_{kind}", title, _unit(kind))
        over_layers = _over_layers(runs, f"{name}_{kind}", title, metrics)
        parts += [over_layers, grid(runs, metrics, same_axis=True)]
        every += metrics
    parts.append(last_values(runs, every))
    how = 'set config.evaluation = "name:manifest:alignment".'
    return section("Unit quality over steps and layers", *parts, how=how)


def _unit(name: str) -> str:
    return next((unit for part, unit in _UNITS.items() if part in name.lower()), "")


def _words(kind: str) -> str:
    return kind.replace("_", " ").replace("pnmi", "PNMI").replace("abx", "ABX")


def _over_layers(runs: Sequence[Run], prefix: str, title: str, metrics: Sequence[Metric]) -> str:
    numbers = [int(metric.name.removeprefix(f"{prefix}_")) for metric in metrics]
    series = []
    for style, run in enumerate(runs):
        found = [
            (k, last) for k, m in zip(numbers, metrics, strict=True) if (last := run.last(m.name))
        ]
        if found:
            step = max(last[0] for _, last in found)
            points = [(k, value) for k, (_, value) in found]
            series.append(Series(f"{run.name} after step {step}", style, points))
    chart = _chart(f"{title}, over layers, newest values", series, metrics[0].unit)
    return f'<div class="charts">{chart}</div>'


def _chart(title: str, series: Sequence[Series], unit: str) -> str:
    values = [y for line in series for _, y in line.points if y is not None]
    return line_chart(title, series, "layer", unit, y_range=span(values))


def evaluations(runs: Sequence[Run]) -> str:
    """What `spidr_jax.evaluate` has left in the runs' folders."""
    files = sorted({name for run in runs for name in run.evaluations})
    parts = [part for name in files for part in _file(runs, name)]
    how = (
        "write one into the run's folder: python -m spidr_jax.evaluate ... "
        "--out RUN/evaluate.json (any name evaluate*.json)."
    )
    return section("Evaluation over layers (ABX, PNMI)", *parts, how=how)


def _file(runs: Sequence[Run], name: str) -> list[str]:
    curves: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    single: dict[str, dict[int, float]] = defaultdict(dict)
    for number, run in enumerate(runs):
        for what, layer, value in run.evaluations.get(name, ()):
            if layer is None:
                single[what][number] = value
            else:
                curves[what][number][layer] = value
    head = [name, *(heading(run, number, runs) for number, run in enumerate(runs))]
    rows = [
        [f"{what}, layer {layer}", *(_cell(by_run[n].get(layer)) for n in range(len(runs)))]
        for what, by_run in curves.items()
        for layer in sorted({layer for layers in by_run.values() for layer in layers})
    ]
    rows += [
        [what, *(_cell(values.get(n)) for n in range(len(runs)))] for what, values in single.items()
    ]
    charts = [
        _chart(
            what,
            [
                Series(runs[n].name, n, sorted(layers.items()))
                for n, layers in sorted(by_run.items())
                if layers
            ],
            _unit(what),
        )
        for what, by_run in curves.items()
        if _unit(what)
    ]
    if not rows:
        return [paragraph(f"{name} holds no numbers.")]
    shown = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return [f"<h3>{paragraph(name)[3:-4]}</h3>", shown, details("All values", table(head, rows))]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
