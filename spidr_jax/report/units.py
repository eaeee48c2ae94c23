"""The phone x unit matrix of what a run's newest checkpoint makes of its first evaluation set."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from spidr_jax.data import audio
from spidr_jax.data.corpus import Corpus, Row
from spidr_jax.eval import quality
from spidr_jax.inference import datasets
from spidr_jax.inference import model as inference
from spidr_jax.report.curves import INK, picture
from spidr_jax.report.runs import Run

_MAX_SECONDS = 300  # of audio that goes through the model
_BATCH_SAMPLES = 640_000
_CELL = 0.17, 0.5, 0.78  # a blue that is seen on white and on black


class Probe(NamedTuple):
    """Units of a model beside the phones of an evaluation set.

    Attributes:
        source: set, checkpoint and layer in words.
        measured: quality by layer.
        matrix: phones x units of that layer.
    """

    source: str
    measured: dict[int, dict[str, float]]
    matrix: quality.PhoneUnitMatrix


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
    spec = run.config.get("evaluation")
    if not spec:
        raise ValueError('config.evaluation is empty: set it to "name:manifest:alignment"')
    if run.saved_step is None:
        raise ValueError(f"{run.folder} holds no checkpoint")
    model = inference.load(run.folder)
    rate = model.config.framing.frames_per_second
    first = datasets.parse_sets(spec)[0]
    dataset = datasets.open_set(*first, frames_per_second=rate)
    phones = dataset.phones
    if not phones:
        raise ValueError(f"the evaluation set {dataset.name} has no alignment")
    layers = model.config.codebook_layers
    if layer is not None and layer not in layers:
        raise ValueError(f"--layer {layer}: allowed are {', '.join(map(str, layers))}")
    rows = _spread(dataset.corpus)
    waves = ((row.fileid, audio.standardised(audio.read_pcm(row))) for row in rows)
    units = dict(model.stream("units", layers, waves, batch_samples=_BATCH_SAMPLES))
    codes = model.config.codebook_size
    pairs = {k: {n: (phones[n], u[i]) for n, u in units.items()} for i, k in enumerate(layers)}
    measured = {k: quality.units_quality(found, codes, rate) for k, found in pairs.items()}
    shown = layer or max(layers, key=lambda k: np.nan_to_num(measured[k]["pnmi"]))
    source = (
        f"layer {shown} after step {model.step:,} on {len(rows)} of the {len(dataset.corpus)} "
        f"utterances of {dataset.name}"
    )
    matrix = quality.proba_phone_code(*quality.count_matrix(pairs[shown], codes, rate))
    return Probe(source, measured, matrix)


def _spread(corpus: Corpus) -> list[Row]:
    """Every n-th row, of `_MAX_SECONDS` of audio at most or one; the shortest first."""
    every = 1
    budget = _MAX_SECONDS * audio.SAMPLE_RATE
    while every < len(corpus) and int(corpus.num_samples[::every].sum()) > budget:
        every += 1
    rows = [corpus.row(i) for i in range(0, len(corpus), every)]
    return sorted(rows, key=lambda row: row.num_samples)


def draw_matrix(found: quality.PhoneUnitMatrix, width: float, height: float) -> str:
    """Phones downwards, units to the right, the darker the more probable the phone is."""
    phones, units = found.probability.shape

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        size = min(10, 0.65 * height / phones)
        left = min(0.8 * size * max(map(len, found.phones)) / width + 0.02, 0.4)
        figure.subplots_adjust(left=left, right=0.99, top=0.94, bottom=0.11)
        shade = np.empty((phones, units, 4))
        shade[..., :3], shade[..., 3] = _CELL, found.probability
        axes.imshow(shade, aspect="auto", interpolation="none")
        axes.set_title("p(phone | unit)")
        axes.set_yticks(range(phones), found.phones, fontsize=size, color=INK)
        every = -(-units // int(width / 22))
        axes.set_xticks(range(0, units, every), found.units[::every].tolist(), fontsize=8)
        axes.set_xlabel(f"{units} units, by their most probable phone")
        axes.tick_params(length=0)
        axes.grid(visible=False)

    return picture(width, height, f"p(phone | unit) of {phones} phones and {units} units", draw)
