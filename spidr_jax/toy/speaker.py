"""One synthetic speaker, in a process of its own: what it says, through its microphone, as WAV.

`main` reads a `Task` as JSON from stdin and prints, as JSON too, each utterance's number of samples
and segments.
"""

import io
import json
import math
import os
import random
import sys
import tempfile
import wave
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spidr_jax.toy.espeak import PITCH, RANGE, RATE, Espeak
from spidr_jax.toy.phones import SILENCE, Segment, align, tidy
from spidr_jax.toy.voices import draw_voice

SAMPLE_RATE = 16_000
_BLOCK_IN, _BLOCK_OUT = 441, 320  # 22,050 Hz to 16,000 Hz
_TAPER = (7_600.0, 8_000.0)

Samples = NDArray[np.float64]


class Task(NamedTuple):
    """What one speaker has to say: (WAV path, text) for each utterance."""

    speaker: str
    female: bool
    seed: int
    utterances: list[tuple[str, str]]


def run(task: Task) -> Iterator[tuple[int, list[Segment]]]:
    """Write the task's WAV files (16 kHz, mono, 16 bit); yield each one's samples and segments.

    Raises:
        OSError: a file cannot be written.
        RuntimeError: espeak-ng does not start.
    """
    voice = draw_voice(task.speaker, task.seed, female=task.female)
    microphone = _Microphone.draw(random.Random(f"microphone {task.seed} {task.speaker}"))
    with tempfile.TemporaryDirectory(prefix="spidr-espeak-") as folder:
        engine = Espeak(folder, voice.variants)
        if engine.sample_rate * _BLOCK_OUT != SAMPLE_RATE * _BLOCK_IN:
            raise RuntimeError(f"espeak-ng speaks at {engine.sample_rate} Hz, not at 22050 Hz")
        for path, text in task.utterances:
            key = f"{task.seed} {os.path.basename(path)}"
            rng = random.Random(key)
            engine.set_voice("en-us+" + rng.choice(list(voice.variants)))
            engine.set_random_seed(zlib.crc32(key.encode()))
            engine.set_parameter(RATE, voice.rate * rng.uniform(0.88, 1.14))
            engine.set_parameter(PITCH, 50 + rng.uniform(-9, 9))
            engine.set_parameter(RANGE, 50 + rng.uniform(-20, 20))
            pcm, events = engine.speak(text)
            segments = align(events, pcm, engine.sample_rate)
            audio, segments = _record(microphone.hear(pcm, rng), segments, rng)
            _write_wav(path, audio)
            yield len(audio), segments


class _Microphone(NamedTuple):
    """A first-order tilt and one peaking band (Bristow-Johnson's audio EQ cookbook)."""

    tilt: float
    frequency: float
    gain_db: float
    quality: float

    @classmethod
    def draw(cls, rng: random.Random) -> "_Microphone":
        return cls(
            rng.uniform(-0.25, 0.35),
            rng.uniform(400, 5_000),
            rng.uniform(-5, 5),
            rng.uniform(0.7, 1.5),
        )

    def hear(self, pcm: NDArray[np.int16], rng: random.Random) -> Samples:
        """Resample from 22,050 to 16,000 Hz and colour, both in one Fourier transform."""
        # Whole blocks, in a number with small factors, with room for the filters to ring out.
        blocks = 16 * math.ceil((len(pcm) / _BLOCK_IN + 4) / 16)
        spectrum = np.fft.rfft(pcm - pcm.mean(), _BLOCK_IN * blocks)
        spectrum = spectrum[: _BLOCK_OUT * blocks // 2 + 1]
        spectrum *= self._response(len(spectrum), self.tilt + rng.uniform(-0.1, 0.1))
        audio = np.fft.irfft(spectrum, _BLOCK_OUT * blocks) * (_BLOCK_OUT / _BLOCK_IN)
        return audio[: math.ceil(len(pcm) * _BLOCK_OUT / _BLOCK_IN)]

    def _response(self, bins: int, tilt: float) -> NDArray[np.complex128]:
        hertz = np.linspace(0, SAMPLE_RATE / 2, bins)
        amplitude = 10 ** (self.gain_db / 40)
        omega = 2 * math.pi * self.frequency / SAMPLE_RATE
        alpha = math.sin(omega) / (2 * self.quality)
        z = _delay(bins)
        shared = -2 * math.cos(omega) * z
        up = (1 + alpha * amplitude) + shared + (1 - alpha * amplitude) * z**2
        down = (1 + alpha / amplitude) + shared + (1 - alpha / amplitude) * z**2
        taper = np.interp(hertz, _TAPER, (1.0, 0.0))
        return (1 - tilt * z) * up / down * taper


def _delay(bins: int) -> NDArray[np.complex128]:
    """Frequency response of one sample's delay."""
    return np.exp(-1j * np.linspace(0, math.pi, bins))


def _record(
    speech: Samples, segments: list[Segment], rng: random.Random
) -> tuple[Samples, list[Segment]]:
    """Set the level, put silence around and noise under the speech; move its segments along."""
    lead, trail = (round(rng.uniform(0.05, 0.30) * SAMPLE_RATE) for _ in range(2))
    voiced = np.concatenate(
        [
            speech[int(s.onset * SAMPLE_RATE) : int(s.offset * SAMPLE_RATE)]
            for s in segments
            if s.phone != SILENCE
        ]
    )
    speech = speech * (10 ** (rng.uniform(-28, -19) / 20) / np.sqrt(np.mean(voiced**2)))
    audio = np.pad(speech, (lead, trail))
    noise_level = 10 ** (-rng.uniform(15, 40) / 20) * np.sqrt(np.mean(audio**2))
    audio += noise_level * _noise(len(audio), rng)
    shift, end = lead / SAMPLE_RATE, len(audio) / SAMPLE_RATE
    moved = [Segment(s.onset + shift, s.offset + shift, s.phone) for s in segments]
    silences = Segment(0.0, shift, SILENCE), Segment(moved[-1].offset, end, SILENCE)
    return audio * min(1.0, 0.99 / np.abs(audio).max()), tidy([silences[0], *moved, silences[1]])


def _noise(num_samples: int, rng: random.Random) -> Samples:
    """Room noise of power 1: white noise through a one-pole low-pass."""
    size = 1024 * math.ceil(num_samples / 1024)
    white = np.random.default_rng(rng.getrandbits(64)).standard_normal(size)
    spectrum = np.fft.rfft(white) / (1 - rng.uniform(0.3, 0.95) * _delay(size // 2 + 1))
    noise = np.fft.irfft(spectrum, size)[:num_samples]
    return noise / noise.std()


def _write_wav(path: str, audio: Samples) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, len(audio), "NONE", "not compressed"))
        file.writeframes(np.rint(audio * 32_767).astype("<i2").tobytes())
    with open(path, "xb") as out:
        out.write(buffer.getbuffer())


def main() -> None:
    """Run the task on stdin; on failure one line on stderr and exit status 1."""
    try:
        print(json.dumps(list(run(Task(**json.load(sys.stdin))))))
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        sys.exit(str(reason))
