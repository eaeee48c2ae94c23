"""One synthetic speaker, in a process of its own: its voice, its microphone, its WAV files.

`main` reads a `Part` as JSON from stdin and prints, as JSON too, each utterance's number of samples
and segments.
"""

import json
import math
import os
import random
import sys
import tempfile
import wave
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.toy import espeak
from spidr_jax.toy.espeak import SILENCE, Segment

_BLOCK_IN, _BLOCK_OUT = 441, 320  # 22,050 Hz to 16,000 Hz
_TAPER = (7_600.0, 8_000.0)
_NEAR_COPIES = 8
_MICROPHONES = ((-0.25, 0.35), (400, 5_000), (-5, 5), (0.7, 1.5))  # tilt, Hz, dB, quality

Samples = NDArray[np.float64]


class Part(NamedTuple):
    """What one speaker has to say: (WAV path, text) for each utterance."""

    speaker: str
    female: bool
    seed: int
    utterances: list[tuple[str, str]]


def say(part: Part) -> Iterator[tuple[int, list[Segment]]]:
    """Write the part's WAV files (16 kHz, mono, 16 bit); yield each one's samples and segments.

    Raises:
        OSError: a file cannot be written.
        RuntimeError: espeak-ng does not start.
    """
    variants, words_per_minute = draw_voice(part.speaker, part.seed, female=part.female)
    rng = random.Random(f"microphone {part.seed} {part.speaker}")
    microphone = [rng.uniform(*bounds) for bounds in _MICROPHONES]
    with tempfile.TemporaryDirectory(prefix="spidr-espeak-") as folder:
        engine = espeak.Espeak(folder, variants)
        for path, text in part.utterances:
            key = f"{part.seed} {os.path.basename(path)}"
            rng = random.Random(key)
            variant = "en-us+" + rng.choice(list(variants))
            rate = words_per_minute * rng.uniform(0.88, 1.14)
            engine.set_voice(variant, rate, 50 + rng.uniform(-9, 9), 50 + rng.uniform(-20, 20))
            pcm, events = engine.speak(text, zlib.crc32(key.encode()))
            segments = espeak.align(events, pcm)
            audio, segments = _record(_hear(pcm, microphone, rng), segments, rng)
            _write_wav(path, audio)
            yield len(audio), segments


def draw_voice(name: str, seed: int, *, female: bool) -> tuple[dict[str, str], int]:
    """Draw a speaker: its voice files by name, and its rate in words per minute.

    The files are near-copies: with one drawn per utterance, no two utterances are alike. Each
    has vocal-tract length (formant scale), formant jitter, pitch, breath, spectral tilt and stress:
    https://github.com/espeak-ng/espeak-ng/blob/master/docs/voices.md describes the fields.
    """
    rng = random.Random(f"voice {seed} {name}")
    lines = _variant_lines(rng, female)
    variants = {}
    for copy in range(_NEAR_COPIES):
        variant = f"{name}-{copy}"
        body = [_jitter(line, rng) for line in lines]
        variants[variant] = "\n".join(["language variant", f"name {variant}", *body]) + "\n"
    return variants, rng.randint(140, 205)


def _variant_lines(rng: random.Random, female: bool) -> list[str]:
    scale = rng.uniform(1.04, 1.22) if female else rng.uniform(0.90, 1.08)
    pitch = rng.uniform(155, 235) if female else rng.uniform(75, 135)
    lines = [
        f"gender {'female' if female else 'male'}",
        f"pitch {pitch:.0f} {pitch * rng.uniform(1.25, 1.6):.0f}",
        f"flutter {rng.randint(2, 12)}",
        f"roughness {rng.randint(0, 4)}",
        f"voicing {rng.randint(85, 110)}",
        f"consonants {rng.randint(70, 125)} {rng.randint(70, 125)}",
    ]
    klatt = rng.choice([0, 0, 0, 1, 2, 3, 5])
    if klatt:
        lines.append(f"klatt {klatt}")
    for formant in range(9):
        frequency = 100 * scale * rng.uniform(0.96, 1.04)
        width = 100 if formant == 0 else rng.randint(80, 150)
        lines.append(f"formant {formant} {frequency:.0f} {rng.randint(75, 115)} {width}")
    tilt = rng.randint(90, 200)
    high = max(40, tilt - rng.randint(10, 70))
    lines.append(f"tone 600 {min(255, tilt + 40)} 1400 {tilt} 2600 {high}")
    if rng.random() < 0.5:
        breath = rng.randint(1, 6)
        levels = (str(max(0, breath + rng.randint(-1, 2))) for _ in range(8))
        lines.append("breath " + " ".join(levels))
    lines.append("stressAdd " + " ".join(str(rng.randint(-15, 30)) for _ in range(8)))
    return lines


def _jitter(line: str, rng: random.Random) -> str:
    key, *values = line.split()
    if key == "formant":
        number, frequency, height, width = values
        return (
            f"formant {number} {float(frequency) * rng.uniform(0.975, 1.025):.0f} "
            f"{int(height) + rng.randint(-6, 6)} {int(width) + rng.randint(-10, 10)}"
        )
    if key == "tone":
        pairs = zip(values[::2], values[1::2], strict=True)
        moved = [f"{f} {min(255, max(30, int(h) + rng.randint(-15, 15)))}" for f, h in pairs]
        return " ".join(["tone", *moved])
    return line


def _hear(pcm: NDArray[np.int16], microphone: Sequence[float], rng: random.Random) -> Samples:
    """Resample from 22,050 to 16,000 Hz and colour, both in one Fourier transform.

    The colour is a first-order tilt and one peaking band (Bristow-Johnson's audio EQ cookbook).
    """
    # Whole blocks, in a number with small factors, with room for the filters to ring out.
    blocks = 16 * math.ceil((len(pcm) / _BLOCK_IN + 4) / 16)
    spectrum = np.fft.rfft(pcm - pcm.mean(), _BLOCK_IN * blocks)[: _BLOCK_OUT * blocks // 2 + 1]
    tilt, frequency, gain_db, quality = microphone
    tilt += rng.uniform(-0.1, 0.1)
    amplitude = 10 ** (gain_db / 40)
    omega = 2 * math.pi * frequency / SAMPLE_RATE
    alpha = math.sin(omega) / (2 * quality)
    z = _delay(len(spectrum))
    shared = -2 * math.cos(omega) * z
    up = (1 + alpha * amplitude) + shared + (1 - alpha * amplitude) * z**2
    down = (1 + alpha / amplitude) + shared + (1 - alpha / amplitude) * z**2
    taper = np.interp(np.linspace(0, SAMPLE_RATE / 2, len(spectrum)), _TAPER, (1.0, 0.0))
    spectrum *= (1 - tilt * z) * up / down * taper
    audio = np.fft.irfft(spectrum, _BLOCK_OUT * blocks) * (_BLOCK_OUT / _BLOCK_IN)
    return audio[: math.ceil(len(pcm) * _BLOCK_OUT / _BLOCK_IN)]


def _delay(bins: int) -> NDArray[np.complex128]:
    """Frequency response of one sample's delay."""
    return np.exp(-1j * np.linspace(0, math.pi, bins))


def _record(
    speech: Samples, segments: list[Segment], rng: random.Random
) -> tuple[Samples, list[Segment]]:
    """Set the level, put silence around and noise under the speech; move its segments along."""
    lead, trail = (round(rng.uniform(0.05, 0.30) * SAMPLE_RATE) for _ in range(2))
    bounds = [(int(s.onset * SAMPLE_RATE), int(s.offset * SAMPLE_RATE)) for s in segments]
    voiced = np.concatenate(
        [speech[a:b] for (a, b), s in zip(bounds, segments, strict=True) if s.phone != SILENCE]
    )
    speech = speech * (10 ** (rng.uniform(-28, -19) / 20) / np.sqrt(np.mean(voiced**2)))
    audio = np.pad(speech, (lead, trail))
    noise_level = 10 ** (-rng.uniform(15, 40) / 20) * np.sqrt(np.mean(audio**2))
    audio += noise_level * _noise(len(audio), rng)
    shift, end = lead / SAMPLE_RATE, len(audio) / SAMPLE_RATE
    moved = [Segment(s.onset + shift, s.offset + shift, s.phone) for s in segments]
    silences = Segment(0.0, shift, SILENCE), Segment(moved[-1].offset, end, SILENCE)
    audio *= min(1.0, 0.99 / np.abs(audio).max())
    return audio, espeak.tidy([silences[0], *moved, silences[1]])


def _noise(num_samples: int, rng: random.Random) -> Samples:
    """Room noise of power 1: white noise through a one-pole low-pass."""
    size = 1024 * math.ceil(num_samples / 1024)
    white = np.random.default_rng(rng.getrandbits(64)).standard_normal(size)
    spectrum = np.fft.rfft(white) / (1 - rng.uniform(0.3, 0.95) * _delay(size // 2 + 1))
    noise = np.fft.irfft(spectrum, size)[:num_samples]
    return noise / noise.std()


def _write_wav(path: str, audio: Samples) -> None:
    with open(path, "xb") as out, wave.open(out, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, len(audio), "NONE", "not compressed"))
        file.writeframes(np.rint(audio * 32_767).astype("<i2").tobytes())


def main() -> None:
    """Say the part on stdin."""
    print(json.dumps(list(say(Part(**json.load(sys.stdin))))))
