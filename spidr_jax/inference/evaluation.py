"""Unit quality and ABX of a run's weights: what pretraining evaluates at a cadence."""

from collections.abc import Callable, Mapping
from typing import Any

from spidr_jax.eval.abx import SPEAKERS
from spidr_jax.inference import outputs
from spidr_jax.inference.forward import make_joint_forward
from spidr_jax.inference.outputs import AbxOptions, EvaluationSet
from spidr_jax.model.config import ModelConfig
from spidr_jax.model.model import Params

ABX = AbxOptions(max_size_group=10, max_x_across=5)  # the field's limits; the same draw every time
_BATCH_SAMPLES = 640_000
_QUALITY = ("pnmi", "phone_purity", "cluster_purity")


def describe(evaluation: EvaluationSet) -> str:
    """Say in a line what is evaluated."""
    items = "no ABX" if evaluation.items is None else f"{len(evaluation.items.first)} ABX items"
    seconds = evaluation.corpus.num_samples.sum() / 16_000
    return (
        f"{evaluation.name}, {len(evaluation.corpus)} utterances, {seconds:,.0f} s, "
        f"{'no ' if evaluation.phones is None else ''}phones, {items}"
    )


def key(model: ModelConfig, evaluation: EvaluationSet) -> str:
    """A metric that is there where a set has been evaluated."""
    name = "abx_across" if evaluation.phones is None else "pnmi"
    return f"{name}/{model.codebook_layers[-1]}"


def make_measure(
    model: ModelConfig, dtype: Any, evaluation: EvaluationSet
) -> Callable[[Params], dict[str, float]]:
    """Make the function from a student's parameters to metrics by name and layer.

    It gives PNMI and purities of the units where phones are known, and ABX of the codebook
    predictions where items are, of each predicted layer.
    """
    kinds = [("units", evaluation.phones), ("codebooks", evaluation.items)]
    asked = {kind: model.codebook_layers for kind, known in kinds if known is not None}
    forward = make_joint_forward(model, dtype, asked)

    def measure(params: Params) -> dict[str, float]:
        stream = outputs.of_model(
            forward, params, model, evaluation.corpus, _BATCH_SAMPLES, title=""
        )
        with outputs.collected(stream, asked) as found:
            values: dict[str, float] = {}
            for kind, known in (
                ("units", evaluation._replace(items=None)),
                ("codebooks", evaluation._replace(phones=None)),
            ):
                arrays = {k: array for k, array in found.arrays.items() if k[0] == kind}
                part, units = found._replace(arrays=arrays), {kind: model.codebook_size}
                for row in outputs.measure(known, part, units, ABX):
                    if row.quality is not None:
                        each = {name: getattr(row.quality, name) for name in _QUALITY}
                    else:
                        each = {f"abx_{task}": x.error for task, x in (row.abx or {}).items()}
                    values |= {f"{name}/{row.layer}": value for name, value in each.items()}
        return values

    return measure


def show(values: Mapping[str, float]) -> str:
    """What the terminal shows of an evaluation: a line of PNMI and one of ABX, by layer."""
    layers = sorted({int(name.rpartition("/")[2]) for name in values})
    lines = []
    if any(name.startswith("pnmi/") for name in values):
        found = [f"{k} {values[f'pnmi/{k}']:.3f}" for k in layers]
        lines.append("PNMI of units: layer " + "  ".join(found))
    if any(name.startswith("abx_") for name in values):
        pairs = [(k, *(values[f"abx_{task}/{k}"] for task in SPEAKERS)) for k in layers]
        found = [f"{k} {within:.1%} / {across:.1%}" for k, within, across in pairs]
        lines.append("ABX of codebooks, within / across speakers: layer " + "  ".join(found))
    return "\n".join(lines)
