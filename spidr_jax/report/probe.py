"""What a run's newest checkpoint makes of its first evaluation set: for the pictures of units."""

from typing import NamedTuple

import numpy as np

from spidr_jax.data import audio
from spidr_jax.data.corpus import Corpus, Row
from spidr_jax.eval import quality
from spidr_jax.inference import datasets as evaluation_sets
from spidr_jax.inference import model as inference
from spidr_jax.report.runs import Run

_MAX_SECONDS = 300  # of audio that goes through the model
_BATCH_SAMPLES = 640_000
_SHOWN = 3  # utterances with a picture
_SHOWN_SECONDS = 4  # of each


class Utterance(NamedTuple):
    """The beginning of an utterance: samples in [-1, 1], phones of 10 ms, units of 20 ms."""

    name: str
    waveform: np.ndarray
    phones: np.ndarray
    units: np.ndarray


class Probe(NamedTuple):
    """Units of a model beside the phones of an evaluation set.

    Attributes:
        dataset: name of the set.
        used: utterances that went through the model, of
        total: in the set.
        step: finished steps of the checkpoint.
        layer: whose units the matrix and the utterances show.
        measured: quality by layer.
        matrix: phones x units.
        utterances: some of the set.
    """

    dataset: str
    used: int
    total: int
    step: int
    layer: int
    measured: dict[int, quality.UnitsQuality]
    matrix: quality.PhoneUnitMatrix
    utterances: list[Utterance]


def probe(run: Run, layer: int | None = None) -> Probe:
    """Run the newest checkpoint on the first evaluation set, or evenly spread files of it.

    Args:
        run: the run.
        layer: whose units are shown; None for the one with the highest PNMI.

    Raises:
        ValueError: there is no evaluation set, or set, checkpoint or layer cannot be used.
        OSError, ImportError, audio.AudioError: something of it cannot be read.
        RuntimeError: the device has no room.
    """
    spec = run.get("evaluation")
    if not spec:
        raise ValueError('config.evaluation is empty: set it to "name:manifest:alignment"')
    if run.saved_step is None:
        raise ValueError(f"{run.folder} holds no checkpoint")
    dataset = evaluation_sets.open_sets(spec.split(",")[0])[0]
    phones = dataset.phones
    if not phones:
        raise ValueError(f"the evaluation set {dataset.name} has no alignment")
    model = inference.load(run.folder)
    layers = model.config.codebook_layers
    if layer is not None and layer not in layers:
        raise ValueError(f"--layer {layer}: allowed are {', '.join(map(str, layers))}")
    rows = _spread(dataset.corpus)
    waves = {row.fileid: audio.read_pcm(row) for row in rows}
    utterances = ((n, audio.standardised(w)) for n, w in sorted(waves.items(), key=_length))
    units = dict(model.stream("units", layers, utterances, batch_samples=_BATCH_SAMPLES))
    codes = model.config.codebook_size
    pairs = [{n: (phones[n], units[n][k]) for n in units} for k in range(len(layers))]
    measured = {k: quality.units_quality(p, codes) for k, p in zip(layers, pairs, strict=True)}
    shown = layer or max(layers, key=lambda k: np.nan_to_num(measured[k].pnmi))
    index = layers.index(shown)
    return Probe(
        dataset=dataset.name,
        used=len(rows),
        total=len(dataset.corpus),
        step=model.step,
        layer=shown,
        measured=measured,
        matrix=quality.proba_phone_code(*quality.count_matrix(pairs[index], codes)),
        utterances=[
            _begin(row.fileid, waves[row.fileid], *pairs[index][row.fileid])
            for row in rows[:: max(len(rows) // _SHOWN, 1)][:_SHOWN]
        ],
    )


def _length(item: tuple[str, np.ndarray]) -> int:
    return len(item[1])


def _spread(corpus: Corpus) -> list[Row]:
    """Every n-th row, so that their audio is at most `_MAX_SECONDS`; at least one."""
    every = 1
    budget = _MAX_SECONDS * audio.SAMPLE_RATE
    while every < len(corpus) and int(corpus.num_samples[::every].sum()) > budget:
        every += 1
    return [corpus.row(i) for i in range(0, len(corpus), every)]


def _begin(name: str, pcm: np.ndarray, phones: np.ndarray, units: np.ndarray) -> Utterance:
    return Utterance(
        name,
        pcm[: _SHOWN_SECONDS * audio.SAMPLE_RATE] / 32_768,
        np.asarray(phones)[: _SHOWN_SECONDS * quality.LABELS_PER_SECOND],
        units[: _SHOWN_SECONDS * quality.UNITS_PER_SECOND],
    )
