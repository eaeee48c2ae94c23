"""Whether a run learns or collapses, in one sentence."""

import math
from statistics import fmean
from typing import Literal, NamedTuple

from spidr_jax.eval.metrics import Key, describe, key_text
from spidr_jax.method.codebook import least_perplexity
from spidr_jax.report.runs import Run

_USE = {
    "target_ppl": "target perplexity",
    "pred_ppl": "prediction perplexity",
    "active_codes": "active",
}


class Verdict(NamedTuple):
    """A word on a run, whether it is good news, and why."""

    mood: Literal["good", "bad", "unsure"]
    word: str
    why: str


def best_layer(run: Run, dataset: str, name: str) -> int | str:
    """The layer with the best last value of a set's metric, of which there is one."""
    sign = -1 if describe(name).direction == "lower" else 1
    layers = run.layers(dataset, name)
    return max(layers, key=lambda layer: sign * layers[layer])


def verdict(run: Run) -> Verdict:
    """Judge a run by its training losses, perplexities and active codes."""
    losses = run.series("loss")
    if not losses:
        return Verdict("unsure", "Not begun", "no training step is logged yet.")
    skipped = run.last("skipped")
    left_out = f"; {skipped:g} updates were not finite and were left out" if skipped else ""
    if losses[-1][1] is None:
        last = max((step for step, y in losses if y is not None), default=0)
        return Verdict("bad", "Not finite", f"no loss is a number after step {last}{left_out}.")
    found = _collapse(run) or _trend(run, [y for _, y in losses if y is not None])
    return found._replace(why=f"{found.why}{left_out}.")


def _collapse(run: Run) -> Verdict | None:
    """Of the codebooks whose targets or predictions share few codes."""
    codes: int = run.config.get("model.codebook_size", 0)
    for name in ("target_ppl", "pred_ppl") if codes else ():
        values = run.layers("", name)
        low = [layer for layer, y in values.items() if y < least_perplexity(codes)]
        if low:
            every = len(low) == len(values)
            where = "all codebooks" if every else f"layers {', '.join(map(str, low))}"
            highest, step = max((y, step) for step, y in run.series(name) if y is not None)
            why = (
                f"{_USE[name]} fell to {fmean(values[k] for k in low):.3g} of {codes} codes in "
                f"{where} (mean at step {step:,}: {highest:.3g}); a falling loss is no good sign"
            )
            return Verdict("bad", "Collapsed" if every else "Collapsing", why)
    return None


def _trend(run: Run, losses: list[float]) -> Verdict:
    codes = run.config.get("model.codebook_size")
    first, last = losses[0], fmean(losses[-3:])
    chance = math.log(codes) if codes else first
    used = [f"{words} {y:.3g}" for name, words in _USE.items() if (y := run.last(name))]
    use = f"; of {codes} codes: {', '.join(used)}" if codes and used else ""
    if len(losses) < 3:
        return Verdict("unsure", "Just begun", f"loss {last:.3g} nats{use}")
    if last > 0.97 * chance:
        why = f"the loss, {last:.3g} nats, is that of chance ({chance:.3g}){use}"
        return Verdict("unsure", "Not learning yet", why)
    why = f"loss fell from {first:.3g} to {last:.3g} nats{_lately(losses)}{use}{_quality(run)}"
    return Verdict("good", "Learning", why)


def _lately(losses: list[float]) -> str:
    """How the last fifth of the losses compares to the fifth before."""
    size = len(losses) // 5
    if not size:
        return ""
    change = fmean(losses[-size:]) / fmean(losses[-2 * size : -size]) - 1
    return (
        " and still decreases" if change < -0.005 else ", now increasing" if change > 0.01 else ""
    )


def _quality(run: Run) -> str:
    """How the best layer's PNMI on the first set has moved."""
    for dataset in [key.set for key in run.keys if key.name == "pnmi"][:1]:
        layer = best_layer(run, dataset, "pnmi")
        found = [y for _, y in run.series(key_text(Key(dataset, layer, "pnmi"))) if y is not None]
        floor = run.of_mfcc("pnmi")
        beside = "" if floor is None else f"; MFCC: {floor:.2g}"
        return (
            f"; PNMI on {dataset} {found[-1]:.2g} (layer {layer}; at first {found[0]:.2g}{beside})"
        )
    return ""
