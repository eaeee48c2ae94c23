"""Unit metrics and ABX of a run's weights, which pretraining computes at a cadence."""

from collections.abc import Callable, Mapping
from typing import Any

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.eval.metrics import METRICS, Key, key_text, parse_key
from spidr_jax.inference import outputs
from spidr_jax.inference.datasets import EvaluationSet
from spidr_jax.inference.forward import make_forward
from spidr_jax.inference.scores import score_abx, score_units
from spidr_jax.model.config import ModelConfig
from spidr_jax.model.model import Params

ABX = {"max_size_group": 10, "max_x_across": 5}  # the field's limits; the same draw every time
_BATCH_SAMPLES = 640_000
_SHOWN = {
    "PNMI of units": ("pnmi",),
    "ABX of codebooks, within / across speakers": ("abx_within", "abx_across"),
}


def describe(evaluation: EvaluationSet) -> str:
    """Say in a line what is evaluated."""
    known = evaluation.items
    items = "no ABX" if known is None else f"{len(known.first)} ABX items"
    if known is not None and len(set(known.speaker.tolist())) == 1:
        items += " of one speaker (across speakers needs two)"
    seconds = evaluation.corpus.num_samples.sum() / SAMPLE_RATE
    return (
        f"{evaluation.name}, {len(evaluation.corpus)} utterances, {seconds:,.0f} s, "
        f"{'no ' if evaluation.phones is None else ''}phones, {items}"
    )


def key(model: ModelConfig, evaluation: EvaluationSet) -> str:
    """A metric that is there where a set has been evaluated."""
    name = "abx_across" if evaluation.phones is None else "pnmi"
    return key_text(Key("", model.codebook_layers[-1], name))


def make_measure(
    model: ModelConfig, dtype: Any, evaluation: EvaluationSet
) -> Callable[[Params], dict[str, float]]:
    """Make the function from a student's parameters to metrics by name and layer.

    It gives the unit metrics of the units where phones are known, and ABX of the codebook
    predictions where items are, of each predicted layer; but not what a validation logs too.
    """
    kinds = [("units", evaluation.phones), ("codebooks", evaluation.items)]
    asked = {kind: model.codebook_layers for kind, known in kinds if known is not None}
    forward = make_forward(model, dtype, asked)

    def measure(params: Params) -> dict[str, float]:
        stream = outputs.of_model(
            forward, params, model, evaluation.corpus, _BATCH_SAMPLES, title=""
        )
        with outputs.collected(stream, asked) as found:
            scores = score_units(found, evaluation, {"units": model.codebook_size})
            scores |= score_abx(found, evaluation.items, ["codebooks"], **ABX)
        return {
            key_text(Key("", layer, name)): value
            for (_, layer), values in scores.items()
            for name, value in values.items()
            if name in METRICS and name != "active_codes"
        }

    return measure


def show(values: Mapping[str, float]) -> str:
    """What the terminal shows of an evaluation: a line of PNMI and one of ABX, by layer."""
    lines = []
    for title, names in _SHOWN.items():
        texts = []
        for layer in [key.layer for key in map(parse_key, values) if key.name == names[0]]:
            shown = [METRICS[name].text(values[key_text(Key("", layer, name))]) for name in names]
            texts.append(f"{layer} {' / '.join(shown)}")
        if texts:
            lines.append(f"{title}: layer {'  '.join(texts)}")
    return "\n".join(lines)
