"""Many utterances of any length through a model in few shapes: windows, padding, batches.

B batch, S samples, T frames, n layers.

The rule for long audio: up to `max_samples` an utterance is encoded whole. A longer one is cut into
the fewest parts of equal length (to a frame) that fit with CONTEXT seconds on either side, each
part is encoded with that context (less at the ends of the audio), and the frames of the context
are thrown away. Every frame of the utterance thus comes exactly once, and sees at least CONTEXT
seconds around it. Standardisation is over the whole utterance, before the cut; the norm over time
of the group_norm extractor is over the window.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.inference.forward import Forward
from spidr_jax.model.config import Framing

CONTEXT = 2.0  # seconds
MAX_SECONDS = 40.0
_STEPS = 4  # lengths in an octave: at most a quarter of a window is padding, a ninth on average
_SHORTEST = 4_096
Utterance = tuple[Any, np.ndarray]


class Window(NamedTuple):
    """Samples [start, stop) to encode, and which of their frames to keep."""

    start: int
    stop: int
    first: int
    frames: int


class _Piece(NamedTuple):
    """One window of an utterance; `ends` marks the last."""

    key: Any
    samples: np.ndarray
    window: Window
    ends: bool


def stream(
    forward: Forward,
    params: Any,
    framing: Framing,
    utterances: Iterable[Utterance],
    *,
    batch_samples: int,
    max_samples: int = round(MAX_SECONDS * SAMPLE_RATE),
    devices: int = 1,
    put: Callable[[np.ndarray], Any] = jnp.asarray,
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Outputs [n, T, ...] by kind of many utterances, in their order, in batches of a few shapes.

    Args:
        forward: from `make_forward`.
        params: the student side's parameters.
        framing: hop and receptive field of the model's frames.
        utterances: keys with standardised waveforms [S], best sorted by length.
        batch_samples: padded samples of a batch, at most (a single row may be longer).
        max_samples: length above which an utterance is cut into windows.
        devices: number that the rows of a batch are a multiple of.
        put: function that brings an array of a batch, [B, ...], to the devices.
    """
    whole: dict[str, list[np.ndarray]] = defaultdict(list)
    pieces = _pieces(utterances, framing, max_samples)
    for batch, waveforms, lengths in _batches(pieces, batch_samples, devices):
        outputs = jax.tree.map(np.asarray, forward(params, put(waveforms), put(lengths)))
        for row, piece in enumerate(batch):
            kept = slice(piece.window.first, piece.window.first + piece.window.frames)
            for kind, values in outputs.items():
                whole[kind].append(values[:, row, kept])
            if piece.ends:
                joined = {kind: np.concatenate(parts, axis=1) for kind, parts in whole.items()}
                yield piece.key, joined
                whole.clear()


def cut(num_samples: int, framing: Framing, max_samples: int) -> list[Window]:
    """Cut an utterance of `num_samples` by the rule above.

    Raises:
        ValueError: `max_samples` leaves no room between the contexts.
    """
    total = framing.num_frames(num_samples)
    if num_samples <= max_samples:
        return [Window(0, num_samples, 0, total)]
    hop = framing.hop
    context = math.ceil(CONTEXT * SAMPLE_RATE / hop)
    inner = framing.num_frames(max_samples) - 2 * context
    if inner < 1:
        raise ValueError(
            f"max_seconds = {max_samples / SAMPLE_RATE:g}: allowed is more than {2 * CONTEXT:g}"
        )
    parts = -(-total // inner)
    windows = []
    for i in range(parts):
        begin, end = i * total // parts, (i + 1) * total // parts
        low, high = max(0, begin - context), min(total, end + context)
        stop = num_samples if high == total else (high - 1) * hop + framing.receptive_field
        windows.append(Window(low * hop, stop, begin - low, end - begin))
    return windows


def round_up(num_samples: int) -> int:
    """The length that an array of so many samples is padded to, one of four in an octave."""
    num_samples = max(num_samples, _SHORTEST)
    step = max(1, 2 ** (num_samples - 1).bit_length() // (2 * _STEPS))
    return -(-num_samples // step) * step


def _pieces(
    utterances: Iterable[Utterance], framing: Framing, max_samples: int
) -> Iterator[_Piece]:
    for key, waveform in utterances:
        cuts = cut(len(waveform), framing, max_samples)
        for i, window in enumerate(cuts):
            samples = waveform[window.start : window.stop]
            yield _Piece(key, samples, window, i == len(cuts) - 1)


def _batches(
    pieces: Iterable[_Piece], batch_samples: int, devices: int
) -> Iterator[tuple[list[_Piece], np.ndarray, np.ndarray]]:
    """Fill batches in order, each with waveforms and lengths; rows depend on their length alone."""

    def rows(length: int) -> int:
        return max(batch_samples // length // devices, 1) * devices

    batch: list[_Piece] = []
    length = 0
    for piece in pieces:
        longer = max(length, round_up(len(piece.samples)))
        if batch and len(batch) + 1 > rows(longer):
            yield batch, *_padded(batch, rows(length), length)
            batch, longer = [], round_up(len(piece.samples))
        batch.append(piece)
        length = longer
    if batch:
        yield batch, *_padded(batch, rows(length), length)


def _padded(pieces: list[_Piece], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    waveforms = np.zeros((rows, length), np.float32)
    lengths = np.full(rows, length, np.int32)
    for row, piece in enumerate(pieces):
        waveforms[row, : len(piece.samples)] = piece.samples
        lengths[row] = len(piece.samples)
    return waveforms, lengths
