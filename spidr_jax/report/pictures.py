"""The phone x unit matrix, and utterances with waveform, phones and units, as SVG."""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.eval.quality import LABELS_PER_SECOND, UNITS_PER_SECOND, PhoneUnitMatrix

if TYPE_CHECKING:
    from spidr_jax.report.probe import Utterance

_LEVELS = 20  # of the matrix's shade
_ROW, _COLUMN, _LABELS, _WIDTH = 13, 30, 44, 1000  # a column's width is the most it has
_PANEL, _HEIGHT = 340, 112  # one second of an utterance
_SLICES = 170  # of the waveform of a second


def matrix_svg(matrix: PhoneUnitMatrix) -> str:
    """Phones downwards, units to the right, the darker the more probable the phone is."""
    phones, units = matrix.probability.shape
    column = min((_WIDTH - _LABELS) / units, _COLUMN)
    height = phones * _ROW + 22
    level = np.ceil(matrix.probability * _LEVELS).astype(int)  # 0 for nothing, never for little
    parts = []
    for shade in range(1, _LEVELS + 1):
        cells = "".join(
            f"M{_LABELS + j * column:.1f} {i * _ROW}h{column:.2f}v{_ROW}h-{column:.2f}z"
            for i, j in np.argwhere(level == shade).tolist()
        )
        if cells:
            parts.append(f'<path class="cell" opacity="{shade / _LEVELS:g}" d="{cells}"/>')
    for i, phone in enumerate(matrix.phones):
        parts.append(
            f'<text class="y" x="{_LABELS - 5}" y="{(i + 1) * _ROW - 3}">{escape(phone)}</text>'
        )
    every = max(units // 24, 1) if column < 22 else 1
    for j in range(0, units, every):
        x = _LABELS + (j + 0.5) * column
        parts.append(f'<text class="x" x="{x:.1f}" y="{height - 8}">{matrix.units[j]}</text>')
    text = f"{phones} phones by frequency, {units} units by their most probable phone"
    return (
        '<div class="wide matrix" tabindex="0">'
        f'<svg viewBox="0 0 {_WIDTH + 12} {height}" role="img">'
        f"<title>p(phone | unit)</title><desc>{text}</desc>{''.join(parts)}</svg></div>"
    )


def best_units(matrix: PhoneUnitMatrix) -> list[tuple[str, str]]:
    """For each phone the units whose most probable phone it is, with the probability."""
    best = matrix.probability.argmax(axis=0)
    top = matrix.probability.max(axis=0)
    return [
        (phone, ", ".join(f"{matrix.units[j]} ({top[j]:.2f})" for j in np.flatnonzero(best == i)))
        for i, phone in enumerate(matrix.phones)
    ]


def utterance_svg(utterance: "Utterance") -> str:
    """An utterance in panels of a second: waveform, phones, units (repetitions once)."""
    seconds = max(-(-len(utterance.waveform) // SAMPLE_RATE), 1)
    peak = float(np.abs(utterance.waveform).max(initial=0)) or 1.0
    panels = "".join(_panel(utterance, second, peak) for second in range(seconds))
    return f'<h3>{escape(utterance.name)}</h3><div class="charts panel">{panels}</div>'


def _panel(utterance: "Utterance", second: int, peak: float) -> str:
    phones = list(_stretches(utterance.phones, second, LABELS_PER_SECOND))
    units = list(_stretches(utterance.units, second, UNITS_PER_SECOND))
    parts = [_wave(utterance.waveform, second, peak)]
    for start, stop, label in phones:
        x, width = start * _PANEL, (stop - start) * _PANEL
        parts.append(f'<path class="phone" d="M{x:.1f} 50v20h{width:.1f}v-20z"/>')
        if width >= 6 * len(label):
            parts.append(f'<text x="{x + width / 2:.1f}" y="63">{escape(label)}</text>')
    for start, stop, label in units:
        x, width = start * _PANEL, (stop - start) * _PANEL
        shade = 0.15 + 0.12 * (int(label) % 4)  # only so that neighbours differ
        parts.append(
            f'<path class="cell unit" opacity="{shade:.2f}" d="M{x:.1f} 74v22h{width:.1f}v-22z"/>'
        )
        middle = x + width / 2
        if width >= 6 * len(label):
            parts.append(f'<text x="{middle:.1f}" y="88">{label}</text>')
        else:  # upright there is room for a single frame's
            place = f'transform="translate({middle + 2.6:.1f} 85) rotate(-90)"'
            parts.append(f'<text class="up" {place}>{label}</text>')
    parts.append(f'<text class="y" x="0" y="108">{second} s</text>')
    spoken = " ".join(label for _, _, label in phones)
    numbers = " ".join(label for _, _, label in units)
    return (
        f'<svg viewBox="-4 0 {_PANEL + 8} {_HEIGHT}" role="img">'
        f"<title>{escape(utterance.name)}, second {second}</title>"
        f"<desc>phones: {escape(spoken)}; units: {numbers}</desc>{''.join(parts)}</svg>"
    )


def _stretches(values: np.ndarray, second: int, rate: int) -> Iterator[tuple[float, float, str]]:
    """Start and stop, as shares of a second, of each run of equal values in it."""
    start = 0
    for value, run in groupby(values[second * rate : (second + 1) * rate].tolist()):
        stop = start + len(list(run))
        yield start / rate, stop / rate, str(value)
        start = stop


def _wave(waveform: np.ndarray, second: int, peak: float) -> str:
    """The outline of a second of waveform: lowest and highest sample of each slice."""
    samples = waveform[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]
    size = SAMPLE_RATE // _SLICES
    slices = [samples[i : i + size] for i in range(0, len(samples), size)]
    step = _PANEL * size / SAMPLE_RATE
    upper = [f"{i * step:.1f} {24 - 22 * part.max() / peak:.1f}" for i, part in enumerate(slices)]
    lower = [f"{i * step:.1f} {24 - 22 * part.min() / peak:.1f}" for i, part in enumerate(slices)]
    return f'<path class="wave" d="M{"L".join(upper + lower[::-1])}z"/>' if slices else ""
