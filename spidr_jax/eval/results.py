"""The numbers of a model's outputs, as a table and for JSON."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from spidr_jax.eval import abx as abx_task
from spidr_jax.eval.abx import AbxError
from spidr_jax.eval.quality import UnitsQuality

_COLUMNS = ("PNMI", "phone pur.", "cluster pur.", "perplexity", "active", "bits/s")
_ABX_COLUMNS = ("ABX within", "ABX across")


class Measured(NamedTuple):
    """The numbers of one output.

    Attributes:
        kind: "features", "codebooks", "units" or "kmeans".
        layer: its number, or "MFCC".
        quality: of units, where the phones are known.
        abx: error within and across speakers, where there are items.
    """

    kind: str
    layer: int | str
    quality: UnitsQuality | None
    abx: dict[str, AbxError] | None


def as_dict(measured: Measured) -> dict[str, Any]:
    """One output's numbers for JSON; what is undefined is None."""
    numbers: dict[str, Any] = {"layer": measured.layer, "kind": measured.kind}
    if measured.quality is not None:
        numbers |= measured.quality._asdict()
    for speakers, found in (measured.abx or {}).items():
        numbers |= {f"abx_{speakers}": found.error, f"abx_{speakers}_cells": found.cells}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }


def table(rows: Sequence[Measured], clusters: int = 0) -> str:
    """Lay the numbers out, a line for each output; ABX errors in per cent."""
    names = {"kmeans": f"k-means {clusters}"}
    lines = [["layer", "output"]]
    with_quality = any(row.quality is not None for row in rows)
    with_abx = any(row.abx is not None for row in rows)
    lines[0] += [*_COLUMNS * with_quality, *_ABX_COLUMNS * with_abx]
    for row in rows:
        line = [str(row.layer), names.get(row.kind, row.kind)]
        if with_quality:
            found = row.quality
            formats = (".3f", ".3f", ".3f", ".1f", "d", ".0f")
            order = found and (found.pnmi, *found[:2], *found[3:])
            line += [f"{v:{f}}" for v, f in zip(order, formats, strict=True)] if order else [""] * 6
        if with_abx and row.abx is not None:
            errors = (row.abx[name].error for name in abx_task.SPEAKERS)
            line += ["-" if math.isnan(error) else f"{100 * error:.2f} %" for error in errors]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
