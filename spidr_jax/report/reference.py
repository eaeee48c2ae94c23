"""The published run's curve, from the logs published with the SpidR paper (arXiv 2512.20308).

`reference_curves.csv` holds validation figures on dev-clean every 2,500 steps, per codebook, each
the mean over batches of about 5,540 masked frames.
"""

import csv
import importlib.resources
from functools import cache

from spidr_jax.report.runs import Point, Run

SOURCE = "the published logs of arXiv 2512.20308"
SECONDS_A_STEP = 16 * 237.5
_MODEL = {
    "model.codebook_size": 256,
    "model.encoder_num_layers": 12,
    "model.num_codebooks": 8,
}


def mismatch(run: Run) -> str:
    """Why a run must not be compared with the curve, empty where it may."""
    for field, published in _MODEL.items():
        value = run.get(field)
        if value != published:
            known = "is not known" if value is None else f"is {value}"
            return f"config.{field} {known}, not {published}"
    return ""


def series(name: str, last: float) -> list[Point]:
    """The curve of a metric such as "loss/5" (empty: it has none) up to step `last`."""
    return [
        (line["step"], line[name]) for line in _lines() if name in line and line["step"] <= last
    ]


@cache
def _lines() -> list[dict[str, float]]:
    file = importlib.resources.files("spidr_jax.report") / "reference_curves.csv"
    rows = csv.DictReader(file.read_text().splitlines())
    return [{name: float(value) for name, value in row.items() if value} for row in rows]
