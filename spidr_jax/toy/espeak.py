"""The engine: a ctypes binding of libespeak-ng, and the phones that it says, with their times.

The library comes in the wheel `espeakng-loader`; it is global state: one engine per process.
Structures and constants are those of its public header `speak_lib.h`.
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 22_050
SILENCE = "SIL"
_STOPS = frozenset(("P", "T", "K", "B", "D", "G", "CH", "JH"))
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

_OUTPUT_SYNCHRONOUS = 2
_INIT_PHONEME_EVENTS, _INIT_DONT_EXIT = 0x0001, 0x8000
_CHARS_UTF8, _ENDPAUSE = 1, 0x1000
_EVENT_LIST_END, _EVENT_PHONEME = 0, 7
_POSITION_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class PhoneEvent(NamedTuple):
    """A phone's onset in samples, and its espeak mnemonic."""

    onset: int
    mnemonic: str


class Segment(NamedTuple):
    """A phone from onset to offset, in seconds."""

    onset: float
    offset: float
    phone: str


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("positions", ctypes.c_int * 3),  # in the text, length there, in the audio in ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("mnemonic", ctypes.c_char * 8),  # of a phone; of other events a pointer
    )


_POINTER, _INT, _UINT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_Callback = ctypes.CFUNCTYPE(_INT, ctypes.POINTER(ctypes.c_short), _INT, ctypes.POINTER(_Event))
_SYNTH_ARGUMENTS = (
    *(ctypes.c_char_p, ctypes.c_size_t, _UINT, _INT, _UINT, _UINT, _POINTER, _POINTER),
)  # text, its size, position, type of position, end position, flags, identifier, user data


class Espeak:
    """The engine of this process, with voice variants added to its own.

    Args:
        folder: an empty folder that stays while the engine is used, under a short path: the engine
            has room for 140 bytes.
        variants: text of each variant file by its name.

    Raises:
        RuntimeError: the engine does not start.
    """

    def __init__(self, folder: str, variants: dict[str, str]) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        _write_data_folder(folder, os.fspath(espeakng_loader.get_data_path()), variants)
        rate = self._library.espeak_Initialize(
            *(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(folder), _INIT_PHONEME_EVENTS | _INIT_DONT_EXIT)
        )
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng does not start in {folder}; is TMPDIR a long path?")
        self._library.espeak_Synth.argtypes = _SYNTH_ARGUMENTS
        self._pcm: list[NDArray[np.int16]] = []
        self._events: list[PhoneEvent] = []
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, pcm: Any, count: int, events: Any) -> int:
        if count > 0 and pcm:
            self._pcm.append(np.ctypeslib.as_array(pcm, shape=(count,)).copy())
        index = 0
        while (event := events[index]).type != _EVENT_LIST_END:
            if event.type == _EVENT_PHONEME:
                self._events.append(PhoneEvent(event.sample, event.mnemonic.decode("utf-8")))
            index += 1
        return 0

    def set_voice(self, name: str, rate: float, pitch: float, pitch_range: float) -> None:
        """Choose a voice, its rate in words per minute, pitch and range (50 is the voice's own)."""
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {name!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, round(value), 0)

    def speak(self, text: str, seed: int) -> tuple[NDArray[np.int16], list[PhoneEvent]]:
        """Say a text, with noise of this seed: mono PCM, and the phones' onsets in it."""
        self._pcm, self._events = [], []
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        data = text.encode() + b"\0"
        flags = _CHARS_UTF8 | _ENDPAUSE
        self._library.espeak_Synth(data, len(data), 0, _POSITION_CHARACTER, 0, flags, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self._pcm]), self._events


def _write_data_folder(parent: str, engine_data: str, variants: dict[str, str]) -> None:
    """Lay out `parent/espeak-ng-data`: links to the engine's own data for English, and variants."""
    data = os.path.join(parent, "espeak-ng-data")
    voices = os.path.join(data, "voices", "!v")
    os.makedirs(voices)
    for name in os.listdir(engine_data):
        if name == "en_dict" or not name.endswith(("_dict", "voices")):
            os.symlink(os.path.join(engine_data, name), os.path.join(data, name))
    for name, text in variants.items():
        with open(os.path.join(voices, name), "w", encoding="ascii") as file:
            file.write(text)


class _Onset(NamedTuple):
    sample: int
    labels: tuple[str, ...]


def align(
    events: Sequence[PhoneEvent], pcm: NDArray[np.int16], sample_rate: int = SAMPLE_RATE
) -> list[Segment]:
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
        stop = labels[0] in _STOPS
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
