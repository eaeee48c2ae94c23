"""A ctypes binding of libespeak-ng, as the wheel `espeakng-loader` ships it.

The engine is global state: one per process. Structures and constants are those of the public header
`speak_lib.h`.
"""

import ctypes
import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spidr_jax.toy.voices import write_data_folder

_OUTPUT_SYNCHRONOUS = 2
_INIT_PHONEME_EVENTS, _INIT_DONT_EXIT = 0x0001, 0x8000
_CHARS_UTF8, _ENDPAUSE = 1, 0x1000
_EVENT_LIST_END, _EVENT_PHONEME = 0, 7
_POSITION_CHARACTER = 1
RATE, PITCH, RANGE = 1, 3, 4


class PhoneEvent(NamedTuple):
    """A phone's onset in samples, and its espeak mnemonic."""

    onset: int
    mnemonic: str


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


_SYNTH_ARGUMENTS = (
    ctypes.c_char_p,  # text
    ctypes.c_size_t,  # its size
    ctypes.c_uint,  # position
    ctypes.c_int,  # type of position
    ctypes.c_uint,  # end position
    ctypes.c_uint,  # flags
    ctypes.c_void_p,  # identifier, not asked for
    ctypes.c_void_p,  # user data, none
)


class Espeak:
    """The engine of this process, with voice variants added to its own.

    Args:
        folder: an empty folder that stays while the engine is used, under a short path: the engine
            has room for 140 bytes.
        variants: text of each variant file by its name.

    Attributes:
        sample_rate: of the audio it returns, in Hz.

    Raises:
        RuntimeError: the engine does not start.
    """

    def __init__(self, folder: str, variants: dict[str, str]) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        write_data_folder(folder, os.fspath(espeakng_loader.get_data_path()), variants)
        self.sample_rate: int = self._library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS,
            0,
            os.fsencode(folder),
            _INIT_PHONEME_EVENTS | _INIT_DONT_EXIT,
        )
        if self.sample_rate <= 0:
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
        while events[index].type != _EVENT_LIST_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                self._events.append(PhoneEvent(event.sample, event.id.string.decode("utf-8")))
            index += 1
        return 0

    def set_voice(self, name: str) -> None:
        """Choose a voice, such as `en-us+spk1`; raises ValueError if there is none of that name."""
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}")

    def set_parameter(self, parameter: int, value: float) -> None:
        """Set RATE (words per minute), PITCH or RANGE (0 to 100, 50 is the voice's own)."""
        if self._library.espeak_SetParameter(parameter, round(value), 0) != 0:
            raise ValueError(f"espeak-ng refuses value {value} for parameter {parameter}")

    def set_random_seed(self, seed: int) -> None:
        """Seed the engine's noise sources."""
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def speak(self, text: str) -> tuple[NDArray[np.int16], list[PhoneEvent]]:
        """Say a text: mono PCM at `sample_rate`, and the phones' onsets in it."""
        self._pcm, self._events = [], []
        data = text.encode() + b"\0"
        flags = _CHARS_UTF8 | _ENDPAUSE
        self._library.espeak_Synth(data, len(data), 0, _POSITION_CHARACTER, 0, flags, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self._pcm]), self._events
