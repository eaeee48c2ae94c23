"""The scores of outputs: unit metrics where phones are known, ABX where there are items."""

from collections.abc import Collection, Mapping
from typing import Any

from spidr_jax.eval import abx
from spidr_jax.eval.items import Items, locate
from spidr_jax.eval.quality import units_quality
from spidr_jax.eval.results import Scores
from spidr_jax.inference.datasets import EvaluationSet
from spidr_jax.inference.outputs import Outputs


def score_units(
    outputs: Outputs, evaluation: EvaluationSet, num_units: Mapping[str, int]
) -> Scores:
    """Compare units with phones; nothing where these are not known.

    The number of units is given for each kind of output that is units.

    Raises:
        ValueError: see `quality.units_quality`.
    """
    phones = evaluation.phones
    if phones is None:
        return {}
    return {
        (kind, layer): units_quality(
            {
                name: (phones[name], array[start : start + length])
                for name, (start, length) in outputs.files.items()
            },
            num_units[kind],
            evaluation.frames_per_second,
        )
        for (kind, layer), array in outputs.arrays.items()
        if kind in num_units
    }


def score_abx(
    outputs: Outputs, items: Items | None, kinds: Collection[str], **options: Any
) -> Scores:
    """Compute ABX errors; nothing where there are no items.

    Features and codebook probabilities are compared by angle, as fastabx does by default; units by
    whether they are the same. Options are those of `abx.measure`.

    Raises:
        ValueError: see `abx.measure`; or a file of the items has no output.
    """
    if items is None:
        return {}
    spans = locate(items, outputs.files)
    scores: Scores = {}
    for (kind, layer), array in outputs.arrays.items():
        if kind in kinds:
            distance = "identical" if array.ndim == 1 else "angular"
            found = abx.measure(array, items, spans, distance=distance, **options)
            errors: dict[str, float] = {f"abx_{name}": each.error for name, each in found.items()}
            cells = {f"abx_{name}_cells": each.cells for name, each in found.items()}
            scores[kind, layer] = errors | cells
    return scores


def count_items(outputs: Outputs, items: Items | None) -> dict[str, int]:
    """Count the items of a task, those that end after their file, and those without a frame."""
    if items is None:
        return {}
    spans = locate(items, outputs.files)
    count = len(spans.length)
    return {"items": count, "items_clipped": spans.clipped, "items_empty": spans.empty}
