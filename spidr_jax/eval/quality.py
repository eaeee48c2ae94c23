"""Quality of discrete units: how well they match phones.

The measures of the field (HuBERT: Hsu et al. 2021, section IV-D) as the reference package computes
them, but that a phone and a unit that never meet contribute nothing, where it adds 1e-10 to their
probability. Another one is an entry of `UNIT_METRICS` and of `metrics.METRICS`.

P phones, V units.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spidr_jax.eval.alignment import FRAMES_PER_SECOND, LABELS_PER_SECOND

_MAX_DIFFERENCE = 2

Pairs = Mapping[str, tuple[ArrayLike, ArrayLike]]


class AlignedUnits(NamedTuple):
    """Units of a corpus beside its phones.

    Attributes:
        pairs: for each file its phones, one every 10 ms, and its units.
        num_units: V.
        units_per_second: rate of the units.
        counts: [P, V], as `count_matrix` returns them.
    """

    pairs: Pairs
    num_units: int
    units_per_second: float
    counts: NDArray[np.int64]


class PhoneUnitMatrix(NamedTuple):
    """p(phone | unit) in an order that shows it as a diagonal.

    Attributes:
        probability: [phones, active units]; its columns sum to 1.
        phones: label of each row, the most frequent first.
        units: number of each column, in the order of their most probable phone and then of its
            probability, falling.
    """

    probability: NDArray[np.float64]
    phones: list[str]
    units: NDArray[np.intp]


def count_matrix(
    pairs: Pairs, num_units: int, units_per_second: float = FRAMES_PER_SECOND
) -> tuple[NDArray[np.int64], list[str]]:
    """Count the frames of each phone and unit.

    Args:
        pairs: for each file its phones, one every 10 ms, and its units, which each count as often
            as they last phones, twice at 50 Hz. Where one ends before the other, by two phones at
            most, the rest of the longer one counts nothing.
        num_units: V; units are 0 to V - 1.
        units_per_second: rate of the units.

    Returns:
        Counts [P, V], and the phones of its rows in alphabetical order.

    Raises:
        ValueError: no phone meets a unit, or a file's units are out of range or of another length
            than its phones.
    """
    met = [_meet(fileid, *pair, num_units, units_per_second) for fileid, pair in pairs.items()]
    if not any(len(units) for _, units in met):
        raise ValueError("there are no phones and units to count")
    names, phones = np.unique(np.concatenate([phones for phones, _ in met]), return_inverse=True)
    cells = phones * num_units + np.concatenate([units for _, units in met])
    counts = np.bincount(cells, minlength=len(names) * num_units).reshape(len(names), num_units)
    return counts.astype(np.int64), [str(name) for name in names]


def _meet(
    fileid: str, phones: ArrayLike, units: ArrayLike, num_units: int, units_per_second: float
) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    labels, numbers = np.asarray(phones, dtype=np.str_), np.asarray(units)
    if numbers.size and not (
        np.issubdtype(numbers.dtype, np.integer) and 0 <= numbers.min() <= numbers.max() < num_units
    ):
        raise ValueError(f"{fileid}: units must be whole numbers from 0 to {num_units - 1}")
    per_unit = LABELS_PER_SECOND / units_per_second
    covered = round(len(numbers) * per_unit)
    if abs(len(labels) - covered) > _MAX_DIFFERENCE:
        raise ValueError(
            f"{fileid}: {len(labels)} phones do not fit {len(numbers)} units of {per_unit:g} "
            "phones each"
        )
    shared = min(len(labels), covered)
    middles = np.arange(shared) + 0.5
    return labels[:shared], numbers.astype(np.intp)[(middles / per_unit).astype(np.intp)]


def units_quality(
    pairs: Pairs, num_units: int, units_per_second: float = FRAMES_PER_SECOND
) -> dict[str, float]:
    """Compute each of `UNIT_METRICS` from what `count_matrix` takes.

    Raises:
        ValueError: as `count_matrix`.
    """
    counts, _ = count_matrix(pairs, num_units, units_per_second)
    aligned = AlignedUnits(pairs, num_units, units_per_second, counts)
    return {name: metric(aligned) for name, metric in UNIT_METRICS.items()}


def pnmi(aligned: AlignedUnits) -> float:
    """Share of the phones' entropy that the units explain, 0 to 1; NaN for a single phone."""
    of_phones, of_units = (entropy(aligned.counts.sum(axis=axis)) for axis in (1, 0))
    information = of_phones + of_units - entropy(aligned.counts)
    return information / of_phones if len(aligned.counts) > 1 else math.nan


def phone_purity(aligned: AlignedUnits) -> float:
    """Probability of the most probable phone of each unit, summed over units."""
    return float(aligned.counts.max(axis=0).sum() / aligned.counts.sum())


def cluster_purity(aligned: AlignedUnits) -> float:
    """Probability of the most probable unit of each phone, summed over phones."""
    return float(aligned.counts.max(axis=1).sum() / aligned.counts.sum())


def codebook_perplexity(aligned: AlignedUnits) -> float:
    """2 to the entropy of the units, 1 to V."""
    return 2 ** entropy(aligned.counts.sum(axis=0))


def active_codes(aligned: AlignedUnits) -> int:
    """Number of units that occur."""
    return int(np.count_nonzero(aligned.counts.sum(axis=0)))


def entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in bits of what has been counted."""
    probability = counts[counts > 0] / counts.sum()
    return float(-(probability * np.log2(probability)).sum())


def bitrate(
    sequences: Iterable[ArrayLike], num_units: int, units_per_second: float = FRAMES_PER_SECOND
) -> float:
    """Bits per second of utterances' units without repetitions: log2(V) bits for each left.

    Raises:
        ValueError: there is no unit at all.
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    seconds = sum(map(len, arrays)) / units_per_second
    if not seconds:
        raise ValueError("there are no units to measure the bitrate of")
    left = sum(1 + np.count_nonzero(np.diff(array)) for array in arrays if len(array))
    return float(math.log2(num_units) * left / seconds)


UNIT_METRICS: dict[str, Callable[[AlignedUnits], float]] = {
    "pnmi": pnmi,
    "phone_purity": phone_purity,
    "cluster_purity": cluster_purity,
    "codebook_perplexity": codebook_perplexity,
    "active_codes": active_codes,
    "bitrate": lambda aligned: bitrate(
        (units for _, units in aligned.pairs.values()), aligned.num_units, aligned.units_per_second
    ),
}


def proba_phone_code(counts: NDArray[np.int64], phones: Sequence[str]) -> PhoneUnitMatrix:
    """Order p(phone | unit) of the units that occur as a diagonal; see `count_matrix`."""
    rows = np.argsort(-counts.sum(axis=1), kind="stable")
    units = np.flatnonzero(counts.sum(axis=0))
    probability = counts[np.ix_(rows, units)] / counts[:, units].sum(axis=0)
    columns = np.lexsort((-probability.max(axis=0), probability.argmax(axis=0)))
    return PhoneUnitMatrix(
        probability[:, columns], [phones[row] for row in rows], units[columns].astype(np.intp)
    )
