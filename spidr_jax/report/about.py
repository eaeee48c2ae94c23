"""Sections on how the runs were made: config and environment."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from spidr_jax.report.markup import details, heading, paragraph, section, table
from spidr_jax.report.runs import Run

_ABSENT = "not there"
_NOT_ENVIRONMENT = ("step", "plan")


def config(runs: Sequence[Run]) -> str:
    """The fields in which the configs differ, then all of them."""
    known = [dict(_fields(run.config)) for run in runs]
    names = list(dict.fromkeys(name for fields in known for name in fields))
    rows = {name: [fields.get(name, _ABSENT) for fields in known] for name in names}
    head = ["field", *(heading(run, number, runs) for number, run in enumerate(runs))]
    if not names:
        return section("Config", how="no config.json lies in the run's folder; training writes it.")
    differing = [[name, *row] for name, row in rows.items() if len(set(row)) > 1]
    if len(runs) == 1:
        first = paragraph("Name several runs to see in which fields they differ.")
    elif differing:
        first = paragraph("The runs differ in:") + table(head, differing, "texts")
    else:
        first = paragraph("The runs do not differ in any field.")
    every = table(head, [[name, *row] for name, row in rows.items()], "texts")
    return section("Config", first, details("All fields", every))


def environment(runs: Sequence[Run]) -> str:
    """The versions and whatever else was saved with the newest checkpoint."""
    known = [
        {name: text for name, text in _fields(run.saved) if name not in _NOT_ENVIRONMENT}
        for run in runs
    ]
    names = list(dict.fromkeys(name for fields in known for name in fields))
    rows = [[name, *(fields.get(name, _ABSENT) for fields in known)] for name in names]
    head = ["", *(heading(run, number, runs) for number, run in enumerate(runs))]
    steps = ["newest checkpoint", *(_ABSENT if s is None else str(s) for s in _steps(runs))]
    shown = table(head, [steps, *rows], "texts") if rows else ""
    how = "versions lie with a run's checkpoints, and there is none that says them."
    return section("Environment", shown, how=how)


def _steps(runs: Sequence[Run]) -> list[int | None]:
    return [run.saved_step for run in runs]


def _fields(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
