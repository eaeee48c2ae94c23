"""Sections from metrics.jsonl: what a run has come to, losses, codebooks, optimisation, speed."""

from collections.abc import Sequence
from itertools import chain

from spidr_jax.eval.metrics import Key, key_text, parse_key
from spidr_jax.report import reference
from spidr_jax.report.markup import (
    Metric,
    grid,
    heading,
    last_text,
    last_values,
    paragraph,
    per_layer,
    section,
    table,
)
from spidr_jax.report.runs import Run

NATS, CODES = "nats", "codes"
_NO_METRICS = "no metrics.jsonl with training steps lies in the run's folder; training writes it."
_MEANS = [
    Metric("loss", "Mean loss", NATS),
    Metric("target_ppl", "Mean target perplexity", CODES),
    Metric("pred_ppl", "Mean prediction perplexity", CODES),
]
_KINDS = (
    ("loss", "loss", NATS),
    ("target_ppl", "target perplexity", CODES),
    ("pred_ppl", "prediction perplexity", CODES),
)
_COUNTS = [
    Metric("skipped", "Skipped updates, since the start", "updates"),
    Metric("bad_rows", "Bad rows, since the last (re)start", "rows"),
]
_OPTIMISATION = [
    Metric("learning_rate", "Learning rate", "per step"),
    Metric("teacher_decay", "Teacher decay", "share kept per step"),
    Metric("grad_norm", "Gradient norm before clipping", "L2", log=True),
]
_SPEED = [
    Metric("audio_seconds_per_second", "Speed", "s of audio per s"),
    Metric("data_wait", "Waiting for data", "s since the line before"),
]


def summary(runs: Sequence[Run]) -> str:
    """The last values of all runs beside each other."""
    rows = [["finished steps", *(str(_finished(run)) for run in runs)]]
    rows += [["config.steps", *(_known(run.get("steps")) for run in runs)]]
    metrics = [*_MEANS, Metric("active_codes", "Mean active codes", CODES)]
    metrics += [*_OPTIMISATION, *_COUNTS, *_SPEED]
    rows += [
        [f"{m.title}, {m.unit}", *(last_text(run, m.name) for run in runs)]
        for m in metrics
        if any(run.last(m.name) for run in runs)
    ]
    head = ["last line of metrics.jsonl", *(heading(run, i, runs) for i, run in enumerate(runs))]
    gaps = [
        f"{run.name}: {count} values in metrics.jsonl were not finite; the lines have gaps there."
        for run in runs
        if (count := sum(v is None for line in run.lines for v in line.values()))
    ]
    return section("Summary", table(head, rows), *map(paragraph, gaps))


def _finished(run: Run) -> int:
    return max(run.lines[-1]["step"] if run.lines else 0, run.saved_step or 0)


def _known(value: object) -> str:
    return "not known" if value is None else str(value)


def losses(runs: Sequence[Run]) -> str:
    """Loss and perplexities in training."""
    kinds = [per_layer(runs, *kind) for kind in _KINDS]
    charts = [grid(runs, _MEANS), *(grid(runs, kind, same_axis=True) for kind in kinds)]
    charts.append(last_values(runs, [*_MEANS, *chain(*kinds)]))
    text = (
        "Of the training batches, with dropout, at single steps. The loss starts near ln V for V "
        "codes; perplexity is 2 to the entropy of the mean assignment (target) or prediction over "
        "masked frames, V at most. A loss that falls far within some hundred steps while target "
        "perplexity stays low is collapse. The published curve is of validation: it stands "
        "there, not here."
    )
    return section(
        "Loss and perplexity per codebook (training)",
        _with_text(text, charts),
        how=_NO_METRICS,
    )


def usage(runs: Sequence[Run]) -> str:
    """How many codes are in use."""
    means = [Metric("active_codes", "Mean active codes", CODES)]
    layers = per_layer(runs, "active_codes", "active codes", CODES)
    charts = [grid(runs, means), grid(runs, layers, same_axis=True)]
    charts.append(last_values(runs, means + layers))
    sizes = {_known(run.get("model.codebook_size")) for run in runs}
    text = (
        "Codes assigned at least once in the step's batch; the codebooks have "
        f"{' or '.join(sorted(sizes))} codes. A larger batch meets more of them."
    )
    return section("Codebook usage", _with_text(text, charts), how=_NO_METRICS)


def validation(runs: Sequence[Run]) -> str:
    """Losses and perplexities on each validation set, over the published curve where it fits."""
    validated = ("loss", "target_ppl", "pred_ppl", "active_codes")
    keys = {key for run in runs for text in run.names if (key := parse_key(text)).set}
    names = {key.set for key in keys if key.name in validated}
    why_not = [(run, reason) for run in runs if (reason := reference.mismatch(run))]
    parts = [part for name in sorted(names) for part in _validation_set(runs, name, not why_not)]
    text = _comparison(runs) if not why_not else (
        "The published curve (12 layers, 8 codebooks of 256 codes, dev-clean) is not drawn: of "
        + ", ".join(f"{run.name} {reason}" for run, reason in why_not)
        + "."
    )  # fmt: skip
    how = 'set config.validation = "name:manifest,..." and config.validation_every.'
    return section("Validation", _with_text(text, parts), how=how)


def _validation_set(runs: Sequence[Run], name: str, comparable: bool) -> list[str]:
    curve = None
    if comparable:

        def curve(metric: str, last: float) -> list:  # type: ignore[misc]
            return reference.series(key_text(parse_key(metric)._replace(set="")), last)

    metrics = [
        m._replace(name=key_text(Key(name, None, m.name)), title=f"{m.title} on {name}")
        for m in _MEANS
    ]
    kinds = [
        per_layer(runs, kind, f"{title} on {name}", unit, name)
        for kind, title, unit in (*_KINDS, ("active_codes", "active codes", CODES))
    ]
    charts = [grid(runs, kind, same_axis=True, reference=curve) for kind in kinds]
    return [grid(runs, metrics), *charts, last_values(runs, [*metrics, *chain(*kinds)])]


def _comparison(runs: Sequence[Run]) -> str:
    text = (
        f"ref, the broad grey line: the published SpidR run on LibriSpeech dev-clean, from "
        f"{reference.SOURCE}, up to the last step here; means over batches of about 5,540 masked "
        "frames (its active codes are fewer than those of larger batches). Only figures of "
        "dev-clean can be expected to lie on it."
    )
    for run in runs:
        devices, samples = run.get("data.planned_devices"), run.get("data.max_batch_samples")
        seconds = devices * samples / 16_000 if devices and samples else None
        if seconds and abs(seconds / reference.SECONDS_A_STEP - 1) > 0.01:
            text += (
                f" A step of {run.name} is {seconds:,.0f} s of audio at most, of the published "
                f"run {reference.SECONDS_A_STEP:,.0f} s."
            )
    return text


def optimisation(runs: Sequence[Run]) -> str:
    """Rate, teacher, gradients and what was left out."""
    metrics = [*_OPTIMISATION, *_COUNTS]
    charts = [grid(runs, metrics), last_values(runs, metrics)]
    return section("Optimisation", *charts, how=_NO_METRICS)


def speed(runs: Sequence[Run]) -> str:
    """Speed and waiting for data."""
    text = "The first line after a start includes compilation. Validation and saving count too."
    charts = [grid(runs, _SPEED), last_values(runs, _SPEED)]
    return section("Speed", _with_text(text, charts), how=_NO_METRICS)


def _with_text(text: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return paragraph(text) + body if body else ""
