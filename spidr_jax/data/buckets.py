"""Buckets: the few lengths that utterances are cropped to, so that few shapes are compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spidr_jax.data import epochs

FRAME = 320  # samples
FRAMES_STEP = 8  # frames of a bucket are a multiple of it
_STEP = FRAME * FRAMES_STEP
_EXTRA = 80  # a bucket of 320 T + 80 samples gives T frames and wastes none
SHORTEST = _STEP + _EXTRA  # 2,640 samples, 8 frames
_BLOCK = 1 << 20
_MAX_TOO_SHORT = 0.001  # share of the audio


class Histogram(NamedTuple):
    """Utterances and their audio (samples) by level: the longest bucket that each fits."""

    utterances: np.ndarray
    audio: np.ndarray


def histogram(num_samples: np.ndarray, min_samples: int, max_samples: int) -> Histogram:
    """Count utterances [n] by level; longer ones than `max_samples` count as cropped to it.

    Those under `min_samples` or 2,640 samples, which fit no bucket, are left out.
    """
    size = (max_samples - _EXTRA) // _STEP + 1
    count, audio = np.zeros(size), np.zeros(size)
    for start in range(0, len(num_samples), _BLOCK):
        lengths = num_samples[start : start + _BLOCK]
        lengths = np.minimum(lengths[lengths >= max(min_samples, SHORTEST)], max_samples)
        levels = (lengths - _EXTRA) // _STEP
        count += np.bincount(levels, minlength=size)
        audio += np.bincount(levels, lengths, minlength=size)
    return Histogram(count, audio)


def mix(histograms: Sequence[Histogram], factors: Sequence[float]) -> Histogram:
    """Add histograms up, each times a factor."""
    pairs = list(zip(histograms, factors, strict=True))
    utterances = np.sum([each.utterances * factor for each, factor in pairs], axis=0)
    return Histogram(utterances, np.sum([each.audio * factor for each, factor in pairs], axis=0))


def count_by_bucket(lengths: Histogram, buckets: Sequence[int]) -> list[int]:
    """Count the utterances whose longest bucket each is."""
    below = np.concatenate([[0.0], np.cumsum(lengths.utterances)])
    levels = [*((bucket - _EXTRA) // _STEP for bucket in buckets), -1]
    return [round(count) for count in np.diff(below[levels])]


def place_buckets(lengths: Histogram, num_buckets: int, shortest: int = 0) -> tuple[int, ...]:
    """Place at most `num_buckets` buckets so that cropping to the next one below loses least audio.

    Buckets are 320 T + 80 samples, T a multiple of 8. The shortest is set first: as long as it can
    be with at most 0.1 % of the audio in shorter utterances, so that a few outliers do not cost
    a bucket, and at least `shortest`. The others are placed by dynamic programming over the
    histogram.

    Returns:
        The buckets in samples, rising; none where no utterance is as long as `shortest`.
    """
    first = -(-(shortest - _EXTRA) // _STEP)
    return tuple(_STEP * level + _EXTRA for level in _best_levels(*lengths, num_buckets, first))


def place_filled_buckets(
    lengths: Histogram, num_buckets: int, max_batch_samples: int, planned_devices: int
) -> tuple[int, ...]:
    """Place the buckets so that the shortest, where everything over gathers, fills a batch.

    Utterances of a bucket that fills none would be in no batch: it had better not be there.

    Raises:
        ValueError: too little audio for one batch, with the numbers.
    """
    buckets = place_buckets(lengths, num_buckets)
    while buckets:
        rows = [planned_devices * (max_batch_samples // bucket) for bucket in buckets]
        if epochs.count_batches(count_by_bucket(lengths, buckets), rows)[0][0]:
            return buckets
        tried, needed = buckets[0], rows[0]
        buckets = place_buckets(lengths, num_buckets, tried + 1)
    product, lower = f"data.max_batch_samples {max_batch_samples} // {tried}", "it"
    if planned_devices > 1:
        product, lower = f"data.planned_devices {planned_devices} x {product}", "one of the two"
    raise ValueError(
        f"{lengths.utterances.sum():.0f} utterances ({lengths.audio.sum() / 57_600_000:.3g} h) "
        f"fill no batch: even one of {tried} samples needs {needed} rows ({product}); lower "
        f"{lower}, or add audio"
    )


def _best_levels(count: np.ndarray, audio: np.ndarray, num_buckets: int, least: int) -> list[int]:
    below = np.concatenate([[0.0], np.cumsum(audio)])  # audio under each level
    outliers = int(np.searchsorted(below, _MAX_TOO_SHORT * below[-1], side="right")) - 1
    first, last = max(outliers, least), int(np.flatnonzero(count)[-1])
    if first > last:
        return []
    levels = np.arange(first, last + 2)
    counts = np.concatenate([[0.0], np.cumsum(count)])[levels]
    # lost[i, j]: audio lost where level i is a bucket and j the next one
    buckets = levels[:, None] * _STEP + _EXTRA
    lost = below[levels][None] - below[levels][:, None] - buckets * (counts[None] - counts[:, None])
    lost[np.tril_indices(len(levels))] = np.inf
    best = lost[:, -1]  # of the audio from level i on, with one bucket
    following = []
    for _ in range(min(num_buckets, len(levels) - 1) - 1):
        through = lost[:-1, :-1] + best[None, :-1]
        options = np.concatenate([through, lost[:-1, -1:]], axis=1)  # another bucket, or none
        following.append(options.argmin(axis=1))
        best = np.append(options.min(axis=1), np.inf)
    chosen = [0]
    for step in reversed(following):
        if step[chosen[-1]] == len(levels) - 1:
            break
        chosen.append(int(step[chosen[-1]]))
    return [first + index for index in chosen]
