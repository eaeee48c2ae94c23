"""How audio of any length becomes few shapes: long audio in windows, lengths rounded up.

S samples, T frames of one utterance.

The rule for long audio: up to `max_samples` an utterance is encoded whole. A longer one is cut into
the fewest parts of equal length (to a frame) that fit with CONTEXT seconds on either side, each
part is encoded with that context (less at the ends of the audio), and the frames of the context
are thrown away. Every frame of the utterance thus comes exactly once, and sees at least CONTEXT
seconds around it. Standardisation is over the whole utterance, before the cut; the norm over time
of the group_norm extractor is over the window.
"""

import math
from typing import NamedTuple

from spidr_jax.model.config import Framing

SAMPLE_RATE = 16_000
CONTEXT = 2.0  # seconds
MAX_SECONDS = 40.0
_STEPS = 4  # lengths in an octave: at most a quarter of a window is padding, a ninth on average
_SHORTEST = 4_096


class Window(NamedTuple):
    """Samples [start, stop) to encode, and which of their frames to keep."""

    start: int
    stop: int
    first: int
    frames: int


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
