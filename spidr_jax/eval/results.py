"""The scores of a model's outputs, as a table and for JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spidr_jax.eval.abx import SPEAKERS
from spidr_jax.eval.metrics import describe
from spidr_jax.eval.quality import UNIT_METRICS

Source = tuple[str, int | str]  # "features", "codebooks", "units" or "kmeans", and layer or "MFCC"
Scores = dict[Source, dict[str, float]]  # by name of the metric
DEFINITIONS = (
    "PNMI counts phones every 10 ms, so each unit twice. bits/s is log2(V) times the units a "
    "second that are left without repetitions."
)


def as_json(scores: Scores) -> list[dict[str, Any]]:
    """An object for each output; what is undefined is None."""
    return [
        {"layer": layer, "kind": kind}
        | {name: None if math.isnan(value) else value for name, value in values.items()}
        for (kind, layer), values in scores.items()
    ]


def table(scores: Scores, clusters: int = 0) -> str:
    """Lay the scores out, a line for each output."""
    known = (*UNIT_METRICS, *(f"abx_{speakers}" for speakers in SPEAKERS))
    names = [name for name in known if any(name in values for values in scores.values())]
    lines = [["layer", "output", *(describe(name).label for name in names)]]
    for (kind, layer), values in scores.items():
        output = f"k-means {clusters}" if kind == "kmeans" else kind
        texts = [describe(name).text(values[name]) if name in values else "" for name in names]
        lines.append([str(layer), output, *texts])
    return aligned(lines)


def notes(scores: Scores, counts: Mapping[str, int]) -> list[str]:
    """Sentences on what the items lack, from `scores.count_items`."""
    found = []
    if any(math.isnan(values.get("abx_across", 0)) for values in scores.values()):
        found = ["ABX across speakers needs a phone in one context by two speakers: there is none"]
    if counts.get("items_clipped") or counts.get("items_empty"):
        found.append(
            f"of {counts['items']} items {counts['items_clipped']} end after the last frame of "
            f"their file and are clipped; {counts['items_empty']} have no frame and are left out"
        )
    return found


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of texts, in columns that end below one another."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
