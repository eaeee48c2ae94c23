"""Phone alignments: from onsets and offsets to one label every 10 ms."""

import math
import os
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from spidr_jax.data import storage

LABELS_PER_SECOND = 100
FRAMES_PER_SECOND = 50  # of the published models and of MFCC
SILENCE = "SIL"

_Segment = tuple[float, float, str]


def read_alignment(path: str | os.PathLike[str]) -> dict[str, NDArray[np.str_]]:
    """Read an alignment file into the phone of every 10 ms of each utterance.

    A line is `fileid onset offset phone`, times in seconds; the lines of an utterance stand in the
    order of time. A label is the phone that sounds in the middle of its 10 ms, `SIL` where no line
    covers it.

    Args:
        path: the file, such as `alignment.txt` of the embedded corpus.

    Returns:
        For each fileid an array of strings [number of labels].

    Raises:
        ValueError: a line of another form, a segment that ends before it begins or begins before
            the one above it has ended (each names the file and the line), or no line at all.
    """
    segments: dict[str, list[_Segment]] = {}
    with storage.open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                fileid, segment = _parse(line, path, number)
                known = segments.setdefault(fileid, [])
                if known and segment[0] < known[-1][1] - 1e-6:
                    refuse(path, number, f"{fileid} is at {known[-1][1]} s already: {line!r}")
                known.append(segment)
    if not segments:
        raise ValueError(f"{os.fspath(path)}: holds no alignment")
    return {fileid: _labels(known) for fileid, known in segments.items()}


def _parse(line: str, path: str | os.PathLike[str], number: int) -> tuple[str, _Segment]:
    try:
        fileid, onset, offset, phone = line.split()
        start, end = float(onset), float(offset)
    except ValueError:
        refuse(path, number, f"is not `fileid onset offset phone`: {line!r}")
    if not 0 <= start <= end < math.inf:
        refuse(path, number, f"onset and offset must be times, in order: {line!r}")
    return fileid, (start, end, phone)


def refuse(path: str | os.PathLike[str], number: int, reason: str) -> NoReturn:
    """Raise a ValueError that names a file's line."""
    raise ValueError(f"{os.fspath(path)}:{number}: {storage.printable(reason)}")


def _labels(segments: list[_Segment]) -> NDArray[np.str_]:
    phones = [SILENCE, *(phone for _, _, phone in segments)]
    index = np.zeros(_first_label_from(segments[-1][1]), np.intp)
    for position, (start, end, _) in enumerate(segments, 1):
        index[_first_label_from(start) : _first_label_from(end)] = position
    return np.array(phones)[index]


def _first_label_from(seconds: float) -> int:
    # Times are decimals: without rounding, 0.555 s would lie beyond the middle of label 55.
    return math.ceil(round(seconds * LABELS_PER_SECOND - 0.5, 6))
