"""Sections that need the model: quality of every layer's units, the matrix, utterances."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spidr_jax.report import pictures
from spidr_jax.report.markup import details, heading, paragraph, section, table
from spidr_jax.report.runs import Run

if TYPE_CHECKING:
    from spidr_jax.report.probe import Probe

_COLUMNS = {
    "phone purity": "phone_purity",
    "cluster purity": "cluster_purity",
    "PNMI": "pnmi",
    "perplexity (codes)": "codebook_perplexity",
    "active codes": "active_codes",
    "bit/s": "bitrate",
}
HOW = (
    "python -m spidr_jax.report RUN, without --no-model, draws it from the newest checkpoint and "
    "the first set of config.evaluation."
)


def matrices(runs: Sequence[Run], probes: Sequence["Probe | str"]) -> str:
    """The phone x unit matrix of each run; a text among the probes says why there is none."""
    parts = []
    for number, (run, found) in enumerate(zip(runs, probes, strict=True)):
        name = heading(run, number, runs)
        if isinstance(found, str):
            parts.append(paragraph(f"{name}: not drawn: {found}") if found else "")
            continue
        parts += [
            paragraph(
                f"{name}: p(phone | unit) of layer {found.layer} after step {found.step} on "
                f"{found.used} of the {found.total} utterances of {found.dataset}. Phones from the "
                "most frequent down, units by their most probable phone, then by its probability, "
                "falling. A full colour is 1, the background exactly 0."
            ),
            pictures.matrix_svg(found.matrix),
            details(
                "Units of each phone, with p(phone | unit), as a table",
                table(("phone", "units whose most probable phone it is"),
                      pictures.best_units(found.matrix), "texts"),
            ),
            table(("layer", *_COLUMNS), _rows(found)),
        ]  # fmt: skip
    return section("Phones and units", *parts, how=HOW)


def _rows(found: "Probe") -> list[list[str]]:
    return [
        [str(layer), *(f"{getattr(measured, field):.4g}" for field in _COLUMNS.values())]
        for layer, measured in found.measured.items()
    ]


def utterances(runs: Sequence[Run], probes: Sequence["Probe | str"]) -> str:
    """Some utterances of each run that has been through its model."""
    parts = []
    for number, (run, found) in enumerate(zip(runs, probes, strict=True)):
        if isinstance(found, str):
            continue
        text = (
            f"{heading(run, number, runs)}: the first seconds of utterances of {found.dataset}; "
            f"waveform, phones, and units of layer {found.layer}, repetitions written once. A "
            "unit stands at its 20 ms; it hears more around. A unit's shade only tells it from "
            "its neighbours."
        )
        parts += [paragraph(text), *map(pictures.utterance_svg, found.utterances)]
    return section("Utterances", *parts, how=HOW)
