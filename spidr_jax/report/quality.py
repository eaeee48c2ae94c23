"""Sections of unit quality: over steps from metrics.jsonl, over layers from evaluation files."""

from collections.abc import Sequence

from spidr_jax.eval.metrics import describe, parse_key
from spidr_jax.report.charts import Series, line_chart
from spidr_jax.report.markup import (
    Metric,
    details,
    grid,
    heading,
    last_values,
    number,
    paragraph,
    per_layer,
    section,
    table,
)
from spidr_jax.report.runs import Evaluation, Run
from spidr_jax.report.scale import span

_MEASURED = ("pnmi", "abx_across", "abx_within", "cluster_purity", "phone_purity")

_ABX = (
    "ABX is the error of the codebook predictions, by angle; of large groups some items are drawn, "
    "the same at every step. spidr_jax.evaluate takes all."
)
_Table = dict[tuple[str, str, int | str], float]  # by kind, name and layer


def over_training(runs: Sequence[Run]) -> str:
    """PNMI, and ABX where it is measured, over layers at the last step and over steps."""
    keys = {key for run in runs for text in run.names if (key := parse_key(text)).set}
    every: list[Metric] = []
    kinds = {(key.set, _MEASURED.index(key.name)) for key in keys if key.name in _MEASURED}
    parts = [paragraph(_ABX)] if any(_MEASURED[i].startswith("abx") for _, i in kinds) else []
    for dataset, i in sorted(kinds):
        title = f"{_words(_MEASURED[i])} on {dataset}"
        metrics = per_layer(runs, _MEASURED[i], title, _unit(_MEASURED[i]), dataset)
        over_layers = _over_layers(runs, title, metrics)
        parts += [over_layers, grid(runs, metrics, same_axis=True)]
        every += metrics
    parts.append(last_values(runs, every))
    how = 'set config.evaluation = "name:manifest:alignment:item" and config.evaluation_every.'
    return section("Unit quality over steps and layers", *parts, how=how)


def _unit(name: str) -> str:
    unit = describe(name).unit
    return "error rate" if unit == "%" else unit if name in _MEASURED else ""


def _words(kind: str) -> str:
    words = kind.replace("_", " ").replace("pnmi", "PNMI").replace("abx", "ABX")
    return words[:1].upper() + words[1:]


def _over_layers(runs: Sequence[Run], title: str, metrics: Sequence[Metric]) -> str:
    series = []
    for style, run in enumerate(runs):
        found = {parse_key(m.name).layer: last for m in metrics if (last := run.last(m.name))}
        if found:
            step = max(step for step, _ in found.values())
            points = [(int(k or 0), value) for k, (_, value) in found.items()]
            series.append(Series(f"{run.name} after step {step}", style, points))
    chart = _chart(f"{title}, over layers, newest values", series, metrics[0].unit)
    return f'<div class="charts">{chart}</div>'


def _chart(title: str, series: Sequence[Series], unit: str) -> str:
    values = [y for line in series for _, y in line.points if y is not None]
    return line_chart(title, series, "layer", unit, y_range=span(values))


def evaluations(runs: Sequence[Run]) -> str:
    """What `spidr_jax.evaluate` has left in the runs' folders, file by file."""
    files = sorted({name for run in runs for name in run.evaluations})
    how = (
        "write one into the run's folder: python -m spidr_jax.evaluate ... "
        "--out RUN/evaluate.json (any name evaluate*.json)."
    )
    parts = [part for file in files for part in _file(runs, file)]
    return section("Evaluation over layers (ABX, PNMI)", *parts, how=how)


def _file(runs: Sequence[Run], file: str) -> list[str]:
    found = [run.evaluations.get(file, Evaluation(None, [])) for run in runs]
    tables = [{(m.kind, m.name, m.layer): m.value for m in each.measured} for each in found]
    keys = list(dict.fromkeys(key for each in tables for key in each))
    if not keys:
        return [paragraph(f"{file} holds no `results` of layers.")]
    charts = [
        _chart(f"{_words(name)} of {kind}", series, _unit(name))
        for kind, name in dict.fromkeys((kind, name) for kind, name, _ in keys)
        if _unit(name) and (series := _curves(runs, tables, kind, name))
    ]
    head = ["layer and output", *(heading(run, number, runs) for number, run in enumerate(runs))]
    rows = [["after step", *("" if each.step is None else str(each.step) for each in found)]]
    rows += [[_row(*key), *(_cell(each.get(key)) for each in tables)] for key in keys]
    text = (
        f"{file}. ref, the broad grey line, is what MFCC give where the file has them: themselves "
        "beside features and codebooks, their k-means beside units."
    )
    shown = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return [paragraph(text), shown, details("All values", table(head, rows))]


def _curves(runs: Sequence[Run], tables: Sequence[_Table], kind: str, name: str) -> list[Series]:
    """A line over layers for each run, after that of MFCC; empty where there is no layer."""
    curves = []
    for style, (run, values) in enumerate(zip(runs, tables, strict=True)):
        found = {k: v for (*which, k), v in values.items() if which == [kind, name]}
        points = sorted((k, v) for k, v in found.items() if isinstance(k, int))
        if points:
            curves.append(Series(run.name, style, points))
    plain = ("kmeans" if kind in ("units", "kmeans") else "features", name, "MFCC")
    floor = next((each[plain] for each in tables if plain in each), None)
    if curves and floor is not None:
        numbers = sorted({k for line in curves for k, _ in line.points})
        curves.insert(0, Series("MFCC", -1, [(k, floor) for k in numbers]))
    return curves


def _row(kind: str, name: str, layer: int | str) -> str:
    where = f"layer {layer}" if isinstance(layer, int) else layer
    return f"{where} {kind}: {_words(name)}"


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
