"""The comparison of a study's settings: means and standard deviations over seeds."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spidr_jax.eval.metrics import Key, describe, key_text, parse_key
from spidr_jax.eval.results import aligned
from spidr_jax.study.plan import PlannedRun
from spidr_jax.study.runs import SPEED, Outcome


class Spread(NamedTuple):
    """Values over seeds.

    Attributes:
        mean: mean of the values.
        deviation: the sample's standard deviation, None for one value.
        n: number of values.
    """

    mean: float
    deviation: float | None
    n: int


class Comparison(NamedTuple):
    """A setting with the spread of each metric over its finished runs.

    Attributes:
        setting: values by field.
        finished: runs.
        planned: runs.
        metrics: by name.
        best: by evaluation set and metric ("unseen/pnmi"), the layer with the best mean.
    """

    setting: dict[str, str]
    finished: int
    planned: int
    metrics: dict[str, Spread]
    best: dict[str, int]


def compare(runs: Sequence[PlannedRun], outcomes: Sequence[Outcome]) -> list[Comparison]:
    """Compare the settings, in their order, by their finished runs."""
    settings: dict[tuple[str, ...], list[tuple[PlannedRun, Outcome]]] = {}
    for run, found in zip(runs, outcomes, strict=True):
        settings.setdefault(tuple(run.setting.values()), []).append((run, found))
    rows = []
    for members in settings.values():
        finished = [found.values for _, found in members if found.finished]
        names = dict.fromkeys(name for values in finished for name in values if name != "step")
        metrics = {
            name: _spread([values[name] for values in finished if name in values]) for name in names
        }
        setting = members[0][0].setting
        rows.append(Comparison(setting, len(finished), len(members), metrics, _best(metrics)))
    return rows


def _spread(values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def _best(metrics: Mapping[str, Spread]) -> dict[str, int]:
    """The best layer of what an evaluation measures of each layer."""
    means: dict[Key, dict[int, float]] = {}
    for name, found in metrics.items():
        key = parse_key(name)
        if key.set and isinstance(key.layer, int):
            means.setdefault(key._replace(layer=None), {})[key.layer] = found.mean
    best = {}
    for key, layers in means.items():
        direction = describe(key.name).direction
        if direction and key_text(key) not in metrics:
            choose = min if direction == "lower" else max
            best[key_text(key)] = choose(layers, key=layers.__getitem__)
    return best


def _of_layer(name: str, layer: int) -> str:
    return key_text(parse_key(name)._replace(layer=layer))


def text(rows: Sequence[Comparison]) -> str:
    """The table for the terminal: a line for each setting."""
    fields = list(rows[0].setting)
    layered = list(dict.fromkeys(name for row in rows for name in row.best))
    names = ["loss", *_validations(rows), "target_ppl", "active_codes", *layered, SPEED]
    lines = [[*fields, "n", *map(_title, names)]]
    for row in rows:
        count = f"{row.finished}/{row.planned}" if row.finished < row.planned else f"{row.planned}"
        lines.append([*row.setting.values(), count, *(_cell(row, name) for name in names)])
    return aligned(lines)


def _validations(rows: Sequence[Comparison]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    return [name for name in names if (key := parse_key(name)).set and key[1:] == (None, "loss")]


def _title(name: str) -> str:
    key = parse_key(name)
    return f"{key.set} {describe(key.name).label}".strip()


def _cell(row: Comparison, name: str) -> str:
    layer = row.best.get(name)
    found = row.metrics.get(name if layer is None else _of_layer(name, layer))
    if found is None:
        return "-"
    value = describe(parse_key(name).name).text(found.mean, found.deviation)
    return value if layer is None else f"{value} (layer {layer})"


def as_dicts(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparison for JSON."""
    return [
        {**row._asdict(), "metrics": {name: s._asdict() for name, s in row.metrics.items()}}
        for row in rows
    ]


def as_csv(runs: Sequence[PlannedRun], outcomes: Sequence[Outcome]) -> str:
    """A row for each run: name, varied fields, seed, status, and the metrics of its last step."""
    names = sorted({name for found in outcomes for name in found.values})
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["run", *(runs[0].setting if runs else ()), "seed", "status", *names])
    for run, found in zip(runs, outcomes, strict=True):
        values = [found.values.get(name, "") for name in names]
        table.writerow([run.name, *run.setting.values(), run.seed, found.status, *values])
    return file.getvalue()
