"""How well discrete units match phones.

The measures of the field (HuBERT: Hsu et al. 2021, section IV-D) as the reference package computes
them, but that a phone and a unit that never meet contribute nothing, where it adds 1e-10 to their
probability.

P phones, V units.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spidr_jax.eval.alignment import LABELS_PER_SECOND

UNITS_PER_SECOND = 50
_LABELS_PER_UNIT = LABELS_PER_SECOND // UNITS_PER_SECOND
_MAX_DIFFERENCE = 2

Pairs = Mapping[str, tuple[ArrayLike, ArrayLike]]


class UnitsQuality(NamedTuple):
    """Measures of a set of units against phones.

    Attributes:
        phone_purity: probability of the most probable phone of each unit, summed over units.
        cluster_purity: probability of the most probable unit of each phone, summed over phones.
        pnmi: share of the phones' entropy that the units explain, 0 to 1; NaN for a single phone.
        codebook_perplexity: 2 to the entropy of the units, 1 to V.
        active_codes: units that occur.
        bitrate: of the units without their repetitions, in bits per second.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float
    codebook_perplexity: float
    active_codes: int
    bitrate: float


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


def count_matrix(pairs: Pairs, num_units: int) -> tuple[NDArray[np.int64], list[str]]:
    """Count how often each phone meets each unit.

    Args:
        pairs: for each file its phones, one every 10 ms, and its units, one every 20 ms, which each
            count twice. Where one ends before the other, by two phones at most, the rest of the
            longer one counts nothing.
        num_units: V; units are 0 to V - 1.

    Returns:
        Counts [P, V], and the phones of its rows in alphabetical order.

    Raises:
        ValueError: no phone meets a unit, or a file's units are out of range or of another length
            than its phones.
    """
    met = [_meet(fileid, *pair, num_units) for fileid, pair in pairs.items()]
    if not any(len(units) for _, units in met):
        raise ValueError("there are no phones and units to count")
    names, phones = np.unique(np.concatenate([phones for phones, _ in met]), return_inverse=True)
    cells = phones * num_units + np.concatenate([units for _, units in met])
    counts = np.bincount(cells, minlength=len(names) * num_units).reshape(len(names), num_units)
    return counts.astype(np.int64), [str(name) for name in names]


def _meet(
    fileid: str, phones: ArrayLike, units: ArrayLike, num_units: int
) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    labels, numbers = np.asarray(phones, dtype=np.str_), np.asarray(units)
    if numbers.size and not (
        np.issubdtype(numbers.dtype, np.integer) and 0 <= numbers.min() <= numbers.max() < num_units
    ):
        raise ValueError(f"{fileid}: units must be whole numbers from 0 to {num_units - 1}")
    repeated = np.repeat(numbers.astype(np.intp), _LABELS_PER_UNIT)
    if abs(len(labels) - len(repeated)) > _MAX_DIFFERENCE:
        raise ValueError(
            f"{fileid}: {len(labels)} phones do not fit {len(numbers)} units of "
            f"{_LABELS_PER_UNIT} phones each"
        )
    shared = min(len(labels), len(repeated))
    return labels[:shared], repeated[:shared]


def units_quality(pairs: Pairs, num_units: int) -> UnitsQuality:
    """Measure units against phones.

    Args:
        pairs: as `count_matrix` takes them.
        num_units: V.

    Raises:
        ValueError: as `count_matrix`.
    """
    counts, _ = count_matrix(pairs, num_units)
    joint = counts / counts.sum()
    phone_entropy, unit_entropy = _entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0))
    information = phone_entropy + unit_entropy - _entropy(joint)
    return UnitsQuality(
        phone_purity=float(joint.max(axis=0).sum()),
        cluster_purity=float(joint.max(axis=1).sum()),
        pnmi=information / phone_entropy if len(counts) > 1 else math.nan,
        codebook_perplexity=2**unit_entropy,
        active_codes=int(np.count_nonzero(counts.sum(axis=0))),
        bitrate=bitrate((units for _, units in pairs.values()), num_units),
    )


def _entropy(probability: NDArray[np.float64]) -> float:
    """Entropy in bits."""
    present = probability[probability > 0]
    return float(-(present * np.log2(present)).sum())


def bitrate(sequences: Iterable[ArrayLike], num_units: int) -> float:
    """Bits per second of units at 50 Hz when repetitions are dropped: log2(V) bits for each left.

    Args:
        sequences: the units of each utterance.
        num_units: V.

    Raises:
        ValueError: there is no unit at all.
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    seconds = sum(map(len, arrays)) / UNITS_PER_SECOND
    if not seconds:
        raise ValueError("there are no units to measure the bitrate of")
    left = sum(1 + np.count_nonzero(np.diff(array)) for array in arrays if len(array))
    return float(math.log2(num_units) * left / seconds)


def proba_phone_code(counts: NDArray[np.int64], phones: Sequence[str]) -> PhoneUnitMatrix:
    """Lay out p(phone | unit) of the units that occur, so that it can be looked at.

    Args:
        counts: [P, V], and
        phones: its rows' labels, as `count_matrix` returns them.
    """
    rows = np.argsort(-counts.sum(axis=1), kind="stable")
    units = np.flatnonzero(counts.sum(axis=0))
    probability = counts[np.ix_(rows, units)] / counts[:, units].sum(axis=0)
    columns = np.lexsort((-probability.max(axis=0), probability.argmax(axis=0)))
    return PhoneUnitMatrix(
        probability[:, columns], [phones[row] for row in rows], units[columns].astype(np.intp)
    )
