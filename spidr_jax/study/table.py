"""The comparison of a study's settings: means and standard deviations over seeds."""

import csv
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spidr_jax.study.plan import PlannedRun
from spidr_jax.study.runs import SPEED, Outcome

_LAYERED = re.compile(r"(.+)_(pnmi|abx_within|abx_across)_(\d+)")
_TITLES = {"pnmi": "PNMI", "abx_within": "ABX within", "abx_across": "ABX across"}
_FORMATS = {"loss": ".3f", "target_ppl": ".1f", "active_codes": ".1f", SPEED: ",.0f"}
_NAMES = {"target_ppl": "target ppl", "active_codes": "active", SPEED: "audio s/s"}


class Spread(NamedTuple):
    """Values over seeds.

    Attributes:
        mean: of them.
        deviation: the sample's standard deviation, None for one value.
        n: how many there are.
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
        best: by evaluation set and measure ("unseen_pnmi"), the layer with the best mean.
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
    """The layer with the highest mean PNMI or the lowest ABX error."""
    best: dict[str, int] = {}
    for name, found in metrics.items():
        if match := _LAYERED.fullmatch(name):
            key, sign = f"{match[1]}_{match[2]}", 1 if match[2] == "pnmi" else -1
            known = metrics[f"{key}_{best[key]}"].mean if key in best else -sign * float("inf")
            if sign * found.mean > sign * known:
                best[key] = int(match[3])
    return best


def text(rows: Sequence[Comparison]) -> str:
    """The table for the terminal: a line for each setting; ABX errors in per cent."""
    fields = list(rows[0].setting)
    keys = list(dict.fromkeys(key for row in rows for key in row.best))
    plain = ["loss", *_validations(rows), "target_ppl", "active_codes"]
    head = [*fields, "n", *(_NAMES.get(name, name) for name in plain), *map(_title, keys)]
    lines = [[*head, _NAMES[SPEED]]]
    for row in rows:
        cells = [_cell(row.metrics.get(name), _FORMATS.get(name, ".3f")) for name in plain]
        cells += [_layer_cell(row, key) for key in keys]
        speed = _cell(row.metrics.get(SPEED), _FORMATS[SPEED])
        count = f"{row.finished}/{row.planned}" if row.finished < row.planned else f"{row.planned}"
        lines.append([*row.setting.values(), count, *cells, speed])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _validations(rows: Sequence[Comparison]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    return [name for name in names if name.endswith("_loss")]


def _title(key: str) -> str:
    name, measure = next((key.removesuffix(f"_{m}"), m) for m in _TITLES if key.endswith(f"_{m}"))
    return f"{name} {_TITLES[measure]}"


def _layer_cell(row: Comparison, key: str) -> str:
    if key not in row.best:
        return "-"
    layer = row.best[key]
    found = row.metrics[f"{key}_{layer}"]
    if key.endswith("_pnmi"):
        return f"{_cell(found, '.3f')} (layer {layer})"
    deviation = None if found.deviation is None else 100 * found.deviation
    return f"{_cell(Spread(100 * found.mean, deviation, found.n), '.1f')} % (layer {layer})"


def _cell(found: Spread | None, form: str) -> str:
    if found is None:
        return "-"
    spread = "" if found.deviation is None else f" ±{found.deviation:{form}}"
    return f"{found.mean:{form}}{spread}"


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
