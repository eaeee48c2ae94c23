"""Unit quality of a model on speech with known phones."""

from typing import Any, NamedTuple

from spidr_jax import extract, model
from spidr_jax.data import audio
from spidr_jax.data.corpus import Corpus, open_manifest
from spidr_jax.eval import quality
from spidr_jax.eval.alignment import read_alignment
from spidr_jax.model_config import ModelConfig


class EvaluationSet(NamedTuple):
    """A named corpus with the phones of its utterances, one every 10 ms."""

    name: str
    corpus: Corpus
    phones: dict[str, Any]


def open_sets(text: str) -> list[EvaluationSet]:
    """Open "name:manifest:alignment,...".

    Raises:
        ValueError: an entry is malformed, or an utterance has no alignment.
        FileNotFoundError: a file is missing.
    """
    sets = []
    for entry in filter(None, text.split(",")):
        parts = entry.split(":")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"config.evaluation: {entry!r} is not name:manifest:alignment")
        name, manifest, alignment = parts
        corpus, phones = open_manifest(manifest), read_alignment(alignment)
        for row in corpus:
            if row.fileid not in phones:
                raise ValueError(f"{alignment}: has no phones of {row.fileid!r} of {manifest}")
        sets.append(EvaluationSet(name, corpus, phones))
    return sets


def unit_quality(
    units_fn: extract.UnitsFn,
    params: model.Params,
    config: ModelConfig,
    evaluation: EvaluationSet,
) -> dict[int, quality.UnitsQuality]:
    """Quality of the units of each predicted layer, by layer number."""
    rows = sorted(evaluation.corpus, key=lambda row: row.num_samples)
    utterances = ((row.fileid, audio.standardised(audio.read_pcm(row))) for row in rows)
    units = dict(extract.extract_units(units_fn, params, config, utterances))
    return {
        layer: quality.units_quality(
            {name: (evaluation.phones[name], units[name][k]) for name in units},
            config.codebook_size,
        )
        for k, layer in enumerate(config.codebook_layers)
    }
