"""The text files of a split: manifest, transcripts, alignment and the items of an ABX task."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from spidr_jax.toy.phones import SILENCE, Segment

FILES = ("manifest.csv", "transcripts.csv", "alignment.txt", "triphone.item")
_ITEM_HEADER = "#file onset offset #phone prev-phone next-phone speaker\n"
_MIN_ITEM = 0.03


class Utterance(NamedTuple):
    """What a speaker is to say, and in which split."""

    split: str
    speaker: str
    fileid: str
    text: str

    @property
    def path(self) -> str:
        """Path of the WAV file, relative to the split's folder."""
        return f"{self.speaker}/{self.fileid}.wav"


class Spoken(NamedTuple):
    """An utterance as it was said: its length and its phones."""

    utterance: Utterance
    num_samples: int
    segments: list[Segment]


def write_tables(folder: Path, spoken: Sequence[Spoken]) -> None:
    """Write a split's `FILES`; times are in seconds, to a tenth of a millisecond."""
    said = [(s.utterance, s.num_samples) for s in spoken]
    manifest = [(u.fileid, u.path, num_samples, u.speaker) for u, num_samples in said]
    _write_csv(folder / FILES[0], ("fileid", "path", "num_samples", "speaker"), manifest)
    _write_csv(folder / FILES[1], ("fileid", "text"), [(u.fileid, u.text) for u, _ in said])
    _write_lines(folder / FILES[2], (line for s in spoken for line in _alignment(s)))
    _write_lines(folder / FILES[3], [_ITEM_HEADER, *(line for s in spoken for line in _items(s))])


def _alignment(spoken: Spoken) -> Iterator[str]:
    for onset, offset, phone in spoken.segments:
        yield f"{spoken.utterance.fileid} {onset:.4f} {offset:.4f} {phone}\n"


def _items(spoken: Spoken) -> Iterator[str]:
    fileid, speaker = spoken.utterance.fileid, spoken.utterance.speaker
    segments = spoken.segments
    for before, here, after in zip(segments, segments[1:], segments[2:], strict=False):
        silent = SILENCE in (before.phone, here.phone, after.phone)
        if not silent and here.offset - here.onset >= _MIN_ITEM:
            times = f"{here.onset:.4f} {here.offset:.4f}"
            yield f"{fileid} {times} {here.phone} {before.phone} {after.phone} {speaker}\n"


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
