"""The published run's curve, from the logs published with the SpidR paper (arXiv 2512.20308).

`reference_curves.csv` holds validation figures on dev-clean every 2,500 steps, per codebook, each
the mean over batches of about 5,540 masked frames.
"""

import csv
import importlib.resources
from functools import cache
from statistics import fmean

from spidr_jax.eval.metrics import parse_key
from spidr_jax.report.runs import Run

_MODEL = {"model.codebook_size": 256, "model.encoder_num_layers": 12, "model.num_codebooks": 8}


def is_published(run: Run) -> bool:
    """Whether a run's model is that of the curve."""
    return all(run.config.get(field) == value for field, value in _MODEL.items())


def mean(name: str) -> list[tuple[float, float]]:
    """The curve of a metric such as "loss", as the mean over codebooks."""
    return [
        (int(row["step"]), fmean(float(v) for key, v in row.items() if parse_key(key).name == name))
        for row in _rows()
    ]


@cache
def _rows() -> list[dict[str, str]]:
    file = importlib.resources.files("spidr_jax.report") / "reference_curves.csv"
    return list(csv.DictReader(file.read_text().splitlines()))
