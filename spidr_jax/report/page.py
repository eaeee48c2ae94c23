"""The page put together and written."""

import importlib.resources
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from spidr_jax.report import about, quality, training, units
from spidr_jax.report.charts import STRETCHES, letter, swatch
from spidr_jax.report.markup import paragraph
from spidr_jax.report.runs import Run, read_runs

if TYPE_CHECKING:
    from spidr_jax.report.probe import Probe

# The page needs nothing from outside, and may not get anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_NOTE = (
    f"Lines of over {2 * STRETCHES} points are drawn through the means of {STRETCHES} stretches, "
    "over a pale band from the lowest to the highest value of each. Vertical axes need "
    "not begin at 0. Under the pointer, values are rounded; metrics.jsonl has them all."
)


def draw(folder: Path) -> None:
    """Write `report.html` into a run's folder, from its files alone; a failure only warns.

    It is the picture at the end of a run: the model is not asked, which would take longer and
    memory on its devices. `python -m spidr_jax.report` does.
    """
    out = folder / "report.html"
    try:
        write([folder], out, with_model=False)
        print(f"report: {out}", flush=True)
    except Exception as error:  # whatever it is, the run itself went well
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"warning: no report of {folder}: {text[:300]}", flush=True)


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


def _probe(run: Run, layer: int | None) -> "Probe | str":
    from spidr_jax.data.audio import AudioError  # JAX is loaded only where the model is asked
    from spidr_jax.report.probe import probe

    try:
        return probe(run, layer)
    except (ValueError, OSError, ImportError, RuntimeError, AudioError) as error:
        return " ".join(str(error).split())


def page(runs: Sequence[Run], probes: Sequence["Probe | str"]) -> str:
    """The HTML of a report; a text in place of a probe says why there is none."""
    title = ", ".join(run.name for run in runs)
    sections = [
        training.summary(runs),
        training.losses(runs),
        training.usage(runs),
        training.validation(runs),
        quality.over_training(runs),
        quality.evaluations(runs),
        units.matrices(runs, probes),
        units.utterances(runs, probes),
        training.optimisation(runs),
        training.speed(runs),
        about.config(runs),
        about.environment(runs),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}: spidr_jax report</title>"
        f"<style>{_asset('page.css')}</style></head>\n<body><h1>{escape(title)}</h1>"
        f"{_legend(runs)}{paragraph(_NOTE)}\n"
        + "\n".join(sections)
        + f"<script>{_asset('hover.js')}</script></body></html>\n"
    )


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    entries = "".join(
        f"<li>{swatch(number)} <b>{letter(number)}</b> {escape(str(run.folder))}</li>"
        for number, run in enumerate(runs)
    )
    return f'<ul class="legend">{entries}</ul>'


def _asset(name: str) -> str:
    return (importlib.resources.files("spidr_jax.report") / name).read_text()
