"""Phone segments: espeak-ng's en-us events to 39 ARPABET phones and SIL, with times."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spidr_jax.toy.espeak import PhoneEvent

SILENCE = "SIL"
STOPS = frozenset(("P", "T", "K", "B", "D", "G", "CH", "JH"))
_MNEMONICS = {
    "AA": "0 A:", "AE": "a aa", "AH": "@ @2 a# V @-", "AO": "O: O2", "AW": "aU", "AY": "aI",
    "B": "b", "CH": "tS", "D": "d", "DH": "D", "EH": "E", "ER": "3 3:", "EY": "eI", "F": "f",
    "G": "g", "HH": "h", "IH": "I I2 I#", "IY": "i i:", "JH": "dZ", "K": "k", "L": "l", "M": "m",
    "N": "n n-", "NG": "N", "OW": "oU", "OY": "OI", "P": "p", "R": "r r-", "S": "s", "SH": "S",
    "T": "t t2 t#", "TH": "T", "UH": "U", "UW": "u:", "V": "v", "W": "w", "Y": "j", "Z": "z",
    "ZH": "Z", SILENCE: "_: _ _! _| ?",
}  # fmt: skip
PHONES = tuple(phone for phone in _MNEMONICS if phone != SILENCE)
# One event may be a vowel and the liquid or schwa after it.
_PAIRS = {
    "O@": ("AO", "R"), "o@": ("AO", "R"), "A@": ("AA", "R"), "e@": ("EH", "R"), "U@": ("UH", "R"),
    "i@3": ("IH", "R"), "i@": ("IY", "AH"), "aI@": ("AY", "AH"), "aI3": ("AY", "ER"),
    "@L": ("AH", "L"),
}  # fmt: skip
_LABELS = {name: (phone,) for phone, names in _MNEMONICS.items() for name in names.split()} | _PAIRS

_QUIET = 8  # of 32,768: espeak's closures are exact zeros but for the tail of the phone before
_RELEASE_SLACK = 0.002
_MIN_CLOSURE = 0.003
_MAX_SHORT_GAP = 0.025
_CLOSURE_AFTER_PAUSE = 0.05
_MIN_SILENCE = 0.02


class Segment(NamedTuple):
    """A phone from onset to offset, in seconds."""

    onset: float
    offset: float
    phone: str


class _Onset(NamedTuple):
    sample: int
    labels: tuple[str, ...]


def align(events: Sequence[PhoneEvent], pcm: NDArray[np.int16], sample_rate: int) -> list[Segment]:
    """Turn the engine's events into gap-free segments over the whole of its audio.

    Times are exact but within the few events that are two phones at once (`_PAIRS`), which are cut
    at a fixed share.

    Raises:
        ValueError: an event that is no phone of en-us.
    """
    onsets = _with_closures(_labelled(events, len(pcm)), pcm, sample_rate)
    ends = [onset.sample for onset in onsets[1:]] + [len(pcm)]
    segments: list[Segment] = []
    for (start, labels), end in zip(onsets, ends, strict=True):
        share = 1.0 if len(labels) == 1 else 0.45 if labels == ("AH", "L") else 0.6
        middle = start + share * (end - start)
        segments.append(Segment(start / sample_rate, middle / sample_rate, labels[0]))
        if len(labels) == 2:
            segments.append(Segment(middle / sample_rate, end / sample_rate, labels[1]))
    return tidy(segments)


def tidy(segments: Iterable[Segment]) -> list[Segment]:
    """Drop empty segments, join neighbouring silences, give short ones to the phone after them."""
    out: list[Segment] = []
    for segment in segments:
        if segment.offset - segment.onset <= 1e-6:
            continue
        last = out[-1] if out and out[-1].phone == SILENCE else None
        if last and segment.phone == SILENCE:
            out[-1] = last._replace(offset=segment.offset)
        elif last and last.offset - last.onset < _MIN_SILENCE:
            out[-1] = segment._replace(onset=last.onset)
        else:
            out.append(segment)
    return out


def _labelled(events: Sequence[PhoneEvent], num_samples: int) -> list[_Onset]:
    names = [event.mnemonic.lstrip("',%=") for event in events]
    onsets = []
    for event, name, after in zip(events, names, [*names[1:], ""], strict=True):
        if name == ";":  # the palatal glide at the end of the vowel before
            continue
        if name not in _LABELS:
            raise ValueError(f"espeak-ng phone {name!r} is no phone of en-us")
        labels = _LABELS[name]
        if labels[-1] == "R" and after in ("r", "r-", "3", "3:"):
            labels = labels[:1]
        onsets.append(_Onset(min(event.onset, num_samples), labels))
    if not onsets or onsets[0].sample > 0:
        onsets.insert(0, _Onset(0, (SILENCE,)))
    return onsets


def _with_closures(
    onsets: Sequence[_Onset], pcm: NDArray[np.int16], sample_rate: int
) -> list[_Onset]:
    """Move each stop's onset back to its closure: the engine reports the release."""
    quiet = np.abs(pcm.astype(np.int32)) <= _QUIET
    out: list[_Onset] = []
    for start, labels in onsets:
        if not out or labels[0] == SILENCE:
            out.append(_Onset(start, labels))
            continue
        first, last = _quiet_before(quiet, start, int(_RELEASE_SLACK * sample_rate))
        first = max(first, out[-1].sample)
        gap = (last - first) / sample_rate
        after_pause = out[-1].labels[0] == SILENCE
        stop = labels[0] in STOPS
        if gap > _MIN_CLOSURE and not after_pause:
            if stop or gap < _MAX_SHORT_GAP:
                start = first
            else:
                out.append(_Onset(first, (SILENCE,)))
        elif gap > _MIN_CLOSURE and stop:
            start = max(first, start - int(_CLOSURE_AFTER_PAUSE * sample_rate))
        out.append(_Onset(start, labels))
    return out


def _quiet_before(quiet: NDArray[np.bool_], end: int, slack: int) -> tuple[int, int]:
    """Bounds of the run of quiet samples that ends at most `slack` samples before `end`."""
    last = end
    while last > max(0, end - slack) and not quiet[last - 1]:
        last -= 1
    first = last
    while first > 0 and quiet[first - 1]:
        first -= 1
    return first, last
