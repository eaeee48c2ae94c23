"""Items of an ABX task: phones of files, and their frames.

n items, F frames of all files one after another.
"""

import os
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spidr_jax.data import storage
from spidr_jax.eval.alignment import FRAMES_PER_SECOND, refuse

COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
_HALF = Decimal("0.5")


class Items(NamedTuple):
    """The rows of an item file, as columns.

    Attributes:
        fileid: [n] strings, and so are phone, previous, following and speaker.
        first: [n] whole numbers, the first frame of each item.
        end: [n] whole numbers, the frame after its last.
    """

    fileid: NDArray[np.str_]
    first: NDArray[np.int64]
    end: NDArray[np.int64]
    phone: NDArray[np.str_]
    previous: NDArray[np.str_]
    following: NDArray[np.str_]
    speaker: NDArray[np.str_]


class Spans(NamedTuple):
    """Where items lie in the frames of all files.

    Attributes:
        start: [n], the first frame.
        length: [n], 0 where no frame is left.
        clipped: items that lost frames because their file ends earlier.
        empty: items without a frame.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    clipped: int
    empty: int


def read_items(path: str | os.PathLike[str], frames_per_second: float = FRAMES_PER_SECOND) -> Items:
    """Read an item file of the ZeroSpeech form, of triphones or phonemes.

    The first line names the columns; those of `COLUMNS` must be among them. Times are in seconds.
    At 50 Hz an item has the frames from ceil(50 onset - 0.5) to floor(50 offset - 0.5), counted in
    decimal numbers, as fastabx 0.9 has them.

    Args:
        path: the file, such as `triphone.item` of the embedded corpus.
        frames_per_second: rate of the frames.

    Raises:
        ValueError: a column is missing, a line has another number of fields, times are no times or
            not in order (each names the file and the line), or there is no item at all.
    """
    with storage.open_text(path) as file:
        lines = [line.split() for line in file]
    if not lines or not lines[0]:
        raise ValueError(f"{os.fspath(path)}: the first line must be `{' '.join(COLUMNS)}`")
    header = lines[0]
    for name in COLUMNS:
        if name not in header:
            refuse(path, 1, f"has no column {name!r}: allowed is `{' '.join(COLUMNS)}`")
    places = [header.index(name) for name in COLUMNS]
    texts, times = [], []
    for number, fields in enumerate(lines[1:], 2):
        if not fields:
            continue
        if len(fields) != len(header):
            refuse(path, number, f"{len(fields)} fields where the first line has {len(header)}")
        fileid, onset, offset, *labels = (fields[place] for place in places)
        texts.append((fileid, *labels))
        times.append(_frames(onset, offset, frames_per_second, path, number))
    if not texts:
        raise ValueError(f"{os.fspath(path)}: holds no item")
    first, end = np.array(times, np.int64).T
    fileids, *columns = (np.array(column) for column in zip(*texts, strict=True))
    return Items(fileids, first, end, *columns)


def _frames(
    onset: str, offset: str, rate: float, path: str | os.PathLike[str], number: int
) -> tuple[int, int]:
    try:
        begin, finish = Decimal(onset), Decimal(offset)
    except InvalidOperation:
        refuse(path, number, f"onset and offset must be seconds: {onset} {offset}")
    # also refuses NaN, whose comparison with <= would raise
    if not (begin.is_finite() and finish.is_finite() and 0 <= begin <= finish):
        refuse(path, number, f"onset and offset must be times, in order: {onset} {offset}")
    low = (begin * Decimal(rate) - _HALF).to_integral_value(ROUND_CEILING)
    high = (finish * Decimal(rate) - _HALF).to_integral_value(ROUND_FLOOR)
    return int(low), int(high) + 1


def places(lengths: Iterable[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """First frame and number of frames of each file, from their lengths one after another."""
    found, total = {}, 0
    for fileid, length in lengths:
        found[fileid] = (total, length)
        total += length
    return found


def locate(items: Items, files: Mapping[str, tuple[int, int]]) -> Spans:
    """Find the items in the frames of all files, clipped to what their file has.

    Args:
        items: items from `read_items`.
        files: files from `places`.

    Raises:
        ValueError: a file has no frames; it names the first such file.
    """
    names, numbers = np.unique(items.fileid, return_inverse=True)
    for name in names:
        if str(name) not in files:
            raise ValueError(f"there are no frames of {str(name)!r}, which has ABX items")
    start, length = np.array([files[str(name)] for name in names], np.int64).T
    end = np.minimum(items.end, length[numbers])
    left = np.maximum(end - items.first, 0)
    return Spans(
        start[numbers] + items.first,
        left,
        clipped=int(np.count_nonzero(items.end > length[numbers])),
        empty=int(np.count_nonzero(left == 0)),
    )
