"""The report's page: its parts, and writing it."""

import importlib.resources
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spidr_jax.data.audio import AudioError
from spidr_jax.eval.metrics import describe, key_text
from spidr_jax.report import pictures, reference
from spidr_jax.report.pictures import letter
from spidr_jax.report.runs import Run, read_runs
from spidr_jax.report.units import Probe, draw_matrix, probe
from spidr_jax.report.verdict import verdict

# The page needs nothing from outside, and may not get anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write(
    folders: Sequence[Path], out: Path, *, with_model: bool = True, layer: int | None = None
) -> list[str]:
    """Write the report of some runs.

    Args:
        folders: the runs' folders.
        out: the HTML file.
        with_model: whether the newest checkpoints are run on their evaluation sets.
        layer: whose units are then shown; None for the one with the highest PNMI.

    Returns:
        A line for each run whose model could not be asked.

    Raises:
        OSError: a run does not exist or cannot be read, or the file cannot be written.
        ValueError: a run's files are damaged.
    """
    runs = read_runs(folders)
    probes = [_probe(run, layer) if with_model else "" for run in runs]
    out.write_text(page(runs, probes), encoding="utf-8")
    found = zip(runs, probes, strict=True)
    return [f"{run.folder}: {text}" for run, text in found if isinstance(text, str) and text]


def _probe(run: Run, layer: int | None) -> Probe | str:
    try:
        return probe(run, layer)
    except (ValueError, OSError, ImportError, RuntimeError, AudioError) as error:
        return " ".join(str(error).split())


def page(runs: Sequence[Run], probes: Sequence[Probe | str]) -> str:
    """The HTML of a report; a text in place of a probe says why there is none."""
    title = ", ".join(run.name for run in runs)
    style = (importlib.resources.files("spidr_jax.report") / "page.css").read_text()
    body = [
        f"<h1>{escape(title)}</h1>",
        *(_verdict(run, number, runs) for number, run in enumerate(runs)),
        _cards(runs, probes),
        _details("Every metric over steps", _metrics(runs)),
        _details("Evaluations", _evaluated(runs)),
        *_units(runs, probes),
        _details("Config and versions", _fields(runs)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}: spidr_jax report</title><style>{style}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _verdict(run: Run, number: int, runs: Sequence[Run]) -> str:
    found = verdict(run)
    name = f"<b class=c{number % 6}>{letter(number)}</b> {escape(run.name)}: "
    facts = " · ".join(_facts(run))
    return (
        f'<p class="verdict {found.mood}">{name if len(runs) > 1 else ""}<b>{found.word}</b>: '
        f"{escape(found.why)}<br><small>{escape(facts)}</small></p>"
    )


def _facts(run: Run) -> Iterator[str]:
    """How far the run is, of what size its model is and how fast it goes."""
    step = max(run.lines[-1]["step"] if run.lines else 0, run.saved_step or 0)
    steps = run.config.get("steps")
    yield f"step {step:,}" + (f" of {steps:,}" if isinstance(steps, int) else "")
    names = ("encoder_num_layers", "num_codebooks", "codebook_size")
    layers, books, codes = (run.config.get(f"model.{name}") for name in names)
    if codes:
        yield f"{layers} layers, {books} codebooks of {codes} codes"
    if speed := run.last("audio_seconds_per_second"):
        yield f"{speed:,.0f} s of audio per s"
    yield f"{run.folder}"


def _cards(runs: Sequence[Run], probes: Sequence[Probe | str]) -> str:
    """The first screen's three pictures."""
    published = all(map(reference.is_published, runs))
    learnt = "Grey: the published run on dev-clean. " if published else ""
    learnt += "Dashed: validation; below, predictions. Red: collapse."
    command = f"drawn by: python -m spidr_jax.report {runs[0].folder}"
    why = next((text for text in probes if isinstance(text, str) and text), command)
    matrix, source = "", ""
    for run, found in zip(runs, probes, strict=True):
        if isinstance(found, Probe) and not matrix:
            matrix = draw_matrix(found.matrix, *pictures.SIZE)
            source = f"{run.name}, {found.source}; full colour: 1."
    layers = "Broad: the best layer; pale: the others."
    if not any(run.evaluated for run in runs):
        layers += " MFCC beside them: spidr_jax.evaluate --mfcc ... --out RUN/evaluate.json."
    cards = {
        "Loss and perplexity": (
            pictures.learning(runs),
            learnt,
            "no training step is logged yet.",
        ),
        "Unit quality": (
            pictures.quality(runs),
            layers,
            'set config.evaluation to "name:manifest:alignment:item".',
        ),
        "Units against phones": (matrix, source, why),
    }
    shown = "".join(
        f"<figure><h2>{name}</h2>{svg}<p>{escape(text if svg else absent)}</p></figure>"
        for name, (svg, text, absent) in cards.items()
    )
    return f'<div class="cards">{shown}</div>'


def _metrics(runs: Sequence[Run]) -> str:
    """A chart of each metric, and the last value of each."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    rows = [
        [key_text(key), describe(key.name).unit, *(_short(run.last(key_text(key))) for run in runs)]
        for key in keys
    ]
    charts = f'<div class="charts">{pictures.every_metric(runs)}</div>'
    return charts + _details("Last values", _table(["metric", "unit", *_names(runs)], rows))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _names(runs: Sequence[Run]) -> list[str]:
    several = len(runs) > 1
    return [f"{letter(i)}: {run.name}" if several else run.name for i, run in enumerate(runs)]


def _evaluated(runs: Sequence[Run]) -> str:
    """What `spidr_jax.evaluate` has left in the runs' folders."""
    named = zip(_names(runs), runs, strict=True)
    rows = [{"run": name} | row for name, run in named for row in run.evaluated]
    return _measured(("run", "file", "step", "layer", "kind"), rows) if rows else ""


def _units(runs: Sequence[Run], probes: Sequence[Probe | str]) -> Iterator[str]:
    for name, found in zip(_names(runs), probes, strict=True):
        if not isinstance(found, str):
            rows = [{"layer": k} | each for k, each in found.measured.items()]
            large = draw_matrix(found.matrix, 1000, 40 + 14 * len(found.matrix.phones))
            body = f"<p>{escape(found.source)}</p>{large}{_measured(('layer',), rows)}"
            yield _details(f"Phones and units of {name}", body)


def _measured(about: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of numbers, and what they are about."""
    names = dict.fromkeys(n for row in rows for n, y in row.items() if n not in about and _is(y))
    cells = [
        [
            *(str(row.get(name, "")) for name in about),
            *(describe(n).text(row[n]) if _is(row.get(n)) else "" for n in names),
        ]
        for row in rows
    ]
    return _table([*about, *(describe(name).label for name in names)], cells)


def _is(value: Any) -> bool:
    return isinstance(value, int | float)


def _fields(runs: Sequence[Run]) -> str:
    """Config, newest checkpoint and versions; of several runs first what differs."""
    known = [run.config | {"checkpoint": run.saved_step} | run.versions for run in runs]
    names = dict.fromkeys(name for fields in known for name in fields)
    rows = [[name, *(_text(fields.get(name, "")) for fields in known)] for name in names]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    differing = sum(len(set(row[1:])) > 1 for row in rows)
    text = f"<p>The runs differ in the first {differing}.</p>" if len(runs) > 1 else ""
    return text + _table(["field", *_names(runs)], rows)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""
