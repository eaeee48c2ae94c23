"""Pictures over steps: learning, unit quality, and every metric."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from matplotlib.figure import Figure

from spidr_jax.eval.metrics import Key, describe, key_text
from spidr_jax.method.codebook import least_perplexity
from spidr_jax.report import reference
from spidr_jax.report.curves import BAD, INK, RUNS, SOFT, Line, layer_colours, lines, picture
from spidr_jax.report.runs import Point, Run
from spidr_jax.report.verdict import best_layer

SIZE = 360, 310  # of the first screen's pictures


def letter(number: int) -> str:
    """A, B, C, ... of the runs."""
    return chr(65 + number % 26) + (str(number // 26) if number >= 26 else "")


def title(name: str) -> str:
    """A metric's label with its unit."""
    metric = describe(name)
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def _line(runs: Sequence[Run], number: int, key: Key, label: str) -> Line:
    """A run's metric; one run has the label, several have letters."""
    scale = 100 if describe(key.name).unit == "%" else 1
    points = [(x, y and scale * y) for x, y in runs[number].series(key_text(key))]
    return Line(letter(number) if len(runs) > 1 else label, points, RUNS[number % len(RUNS)])


def _trained(runs: Sequence[Run], name: str, label: str) -> list[Line]:
    key = Key("", None, name)
    return [_line(runs, i, key, label) for i, run in enumerate(runs) if key in run.keys]


def _level(runs: Sequence[Run], label: str, height: float) -> Line:
    ends: list[Point] = [(0, height), (last_step(runs), height)]
    return Line(label, ends, SOFT, 1, dashed=True, marked=False)


class _Panel(NamedTuple):
    """Lines over the same steps as others'; of a perplexity, how many codes there are."""

    title: str
    drawn: list[Line]
    codes: int = 0


def learning(runs: Sequence[Run]) -> str:
    """Loss and perplexities of all runs over the published curve; empty where there are none."""
    codes = max((run.config.get("model.codebook_size") or 0 for run in runs), default=0)
    trained = _trained(runs, "loss", "training")
    if not trained:
        return ""
    validated = [
        _line(runs, i, key, key.set)
        for i, run in enumerate(runs)
        for key in run.keys
        if key.set and key.name == "loss" and key.layer is None
    ]
    loss = [*_published(runs, "loss"), *trained, *_dashed(runs, validated)]
    use = [*_published(runs, "target_ppl"), *_trained(runs, "target_ppl", "target")]
    use += _dashed(runs, _trained(runs, "pred_ppl", "prediction"))
    if codes:
        loss.append(_level(runs, "chance", math.log(codes)))
    of = f" of {codes}" if codes else ""
    return _stacked(
        runs, [_Panel("loss, nats", loss), _Panel(f"perplexity, codes{of}", use, codes)]
    )


def _dashed(runs: Sequence[Run], drawn: Sequence[Line]) -> list[Line]:
    """Lines beside solid ones, at which a run's letter stands already."""
    return [line._replace(dashed=True, label="" if len(runs) > 1 else line.label) for line in drawn]


def _published(runs: Sequence[Run], name: str) -> list[Line]:
    """The published curve, where all runs are of its model."""
    points = [(x, y) for x, y in reference.mean(name) if x <= last_step(runs)]
    shown = len(points) > 1 and all(map(reference.is_published, runs))
    return [Line("published", points, SOFT, 3, alpha=0.5, marked=False)] * shown


def last_step(runs: Sequence[Run]) -> int:
    """The last step of which a run has a line, at least 1."""
    return max((line["step"] for run in runs for line in run.lines), default=0) or 1


def _stacked(runs: Sequence[Run], panels: Sequence[_Panel]) -> str:
    def draw(figure: Figure) -> None:
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.subplots_adjust(left=0.1, right=0.8, top=0.94, bottom=0.11, hspace=0.24)
        every[0].set_xlim(0, last_step(runs))
        for axes, panel in zip(every, panels, strict=True):
            lines(axes, panel.drawn, panel.title)
            if panel.codes:
                axes.axhspan(0, least_perplexity(panel.codes), color=BAD, alpha=0.15, lw=0)
                axes.set_ylim(0, 1.03 * panel.codes)
        every[-1].set_xlabel("step")

    return picture(*SIZE, f"over steps: {'; '.join(panel.title for panel in panels)}", draw)


def quality(runs: Sequence[Run]) -> str:
    """The first set's first metrics of each direction over steps, and what MFCC give."""
    shown: dict[str, Key] = {}
    for key in [key for run in runs for key in run.keys if key.set and key.layer is not None]:
        if key.name != "loss" and describe(key.name).direction:
            shown.setdefault(describe(key.name).direction, key)
    panels = [
        _Panel(f"{title(key.name)}, {key.set}", list(_best(runs, key)))
        for _, key in sorted(shown.items())
    ]
    return _stacked(runs, panels) if panels else ""


def _best(runs: Sequence[Run], key: Key) -> Iterator[Line]:
    """A metric of all layers, the best one's line broad and with a label, and that of MFCC."""
    for i, run in enumerate(runs):
        layers = run.layers(key.set, key.name)
        best = best_layer(run, key.set, key.name) if layers else None
        for layer in sorted(layers, key=lambda layer: layer == best):
            line = _line(runs, i, key._replace(layer=layer), f"layer {layer}")
            thin = line._replace(label="", width=1, alpha=0.35)
            yield line._replace(width=2) if layer == best else thin
    floor = next((y for run in runs if (y := run.of_mfcc(key.name)) is not None), None)
    if floor is not None:
        scale = 100 if describe(key.name).unit == "%" else 1
        yield _level(runs, "MFCC", scale * floor)


def every_metric(runs: Sequence[Run]) -> str:
    """A chart of each metric that changes: of one run with all layers, of several by layer."""
    keys = dict.fromkeys(
        key
        for run in runs
        for key in run.keys
        if len({y for _, y in run.series(key_text(key))}) > 1
    )
    groups: dict[Key, list[Key]] = {}
    for key in keys:
        groups.setdefault(key._replace(layer=None) if len(runs) == 1 else key, []).append(key)
    return "".join(_chart(runs, *group) for group in groups.items())


def _chart(runs: Sequence[Run], shown: Key, keys: Sequence[Key]) -> str:
    drawn = [
        _line(runs, i, key, "mean" if key.layer is None else str(key.layer))
        for key in keys
        for i, run in enumerate(runs)
        if key in run.keys
    ]
    if len(runs) == 1:
        shades = [*[INK] * (keys[0].layer is None), *layer_colours(len(keys))]
        drawn = [
            line._replace(colour=shade, width=1.2, label=line.label if len(keys) > 1 else "")
            for line, shade in zip(drawn, shades, strict=False)
        ]
    where = f"{shown.set or 'training'}{'' if shown.layer is None else f', layer {shown.layer}'}"
    text = f"{title(shown.name)} ({where})"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        figure.subplots_adjust(left=0.17, right=0.88, top=0.93, bottom=0.11)
        axes.set_xlim(0, last_step(runs))
        lines(axes, drawn, "")

    svg = picture(320, 190, f"over steps: {text}", draw)
    return f"<figure><figcaption>{escape(text)}</figcaption>{svg}</figure>"
