"""One epoch of the plan: streams of utterances by bucket, cut into full batches.

B rows of a batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spidr_jax.data import shuffle

_BLOCK = 1 << 20


class Stream(NamedTuple):
    """The utterances of one source on one bucket, as an endless row of shuffled passes.

    Attributes:
        members: [n] utterances, numbered through all sources.
        draws: number of the row's utterances in each epoch.
        seed: seed of the passes' orders.
    """

    members: np.ndarray
    draws: int
    seed: int

    def take(self, epoch: int) -> np.ndarray:
        """Give the utterances [draws] of an epoch: where the one before stopped."""
        start, stop = epoch * self.draws, (epoch + 1) * self.draws
        size = len(self.members)
        parts = [self.members[:0]]
        for number in range(start // size, -(-stop // size)) if size else ():
            order = shuffle.permutation(shuffle.salt(self.seed, number), size)
            begin = number * size
            parts.append(self.members[order[max(start - begin, 0) : stop - begin]])
        return np.concatenate(parts)


def make_streams(
    num_samples: np.ndarray,
    *,
    min_samples: int,
    buckets: Sequence[int],
    passes: float,
    start: int,
    total: int,
    seed: int,
) -> list[Stream]:
    """Sort the utterances [n] of a source to the longest bucket that each fits.

    Args:
        num_samples: lengths; those under `min_samples` or the first bucket are left out.
        min_samples: least length of an utterance.
        buckets: rising, at most 255.
        passes: passes through the source in an epoch.
        start: number of the source's first utterance.
        total: utterances of all sources, which sets the integer type.
        seed: seed of the source.
    """
    levels = np.empty(len(num_samples), np.uint8)  # a byte: sorted by radix
    for begin in range(0, len(num_samples), _BLOCK):
        lengths = num_samples[begin : begin + _BLOCK]
        level = np.searchsorted(buckets, lengths, side="right")
        levels[begin : begin + _BLOCK] = np.where(lengths < min_samples, 0, level)
    ordered = (np.argsort(levels, kind="stable") + start).astype(np.min_scalar_type(total))
    ends = np.cumsum(np.bincount(levels, minlength=len(buckets) + 1))
    streams = []
    for index in range(len(buckets)):
        members = ordered[ends[index] : ends[index + 1]]
        draws = max(1, round(passes * len(members))) if len(members) else 0
        streams.append(Stream(members, draws, shuffle.salt(seed, "pass", index)))
    return streams


def count_batches(available: Sequence[int], rows: Sequence[int]) -> tuple[list[int], int]:
    """Count the full batches of each bucket, and the utterances that are over in the end.

    Args:
        available: utterances by bucket, rising.
        rows: B by bucket.
    """
    batches, carried = [], 0
    for own, size in zip(reversed(available), reversed(rows), strict=True):
        number, carried = divmod(own + carried, size)
        batches.append(number)
    return batches[::-1], carried


def fill_batches(
    own: Sequence[np.ndarray], rows: Sequence[int], batches: Sequence[int]
) -> list[np.ndarray]:
    """Cut the utterances of each bucket into batches; what fills none goes to the next shorter one.

    Args:
        own: utterances by bucket, rising, each in shuffled order (source after source).
        rows: B by bucket.
        batches: batches of an epoch, from `count_batches`.

    Returns:
        By bucket, utterances [B, batches]: batch j is column j, so that each gets its part of
        every source and of the utterances that moved.
    """
    tables = []
    carried = own[0][:0]
    for utterances, size, number in zip(own[::-1], rows[::-1], batches[::-1], strict=True):
        left = len(carried) + len(utterances) - size * number
        if not number:
            table, carried = carried[:0], np.concatenate([carried, utterances])
        else:
            moves = np.zeros(len(utterances), bool)  # none that moved already: they were fewer
            moves[np.arange(left) * len(utterances) // max(left, 1)] = True
            table, carried = np.concatenate([carried, utterances[~moves]]), utterances[moves]
        tables.append(table.reshape(size, number))
    return tables[::-1]
