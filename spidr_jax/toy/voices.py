"""Synthetic espeak-ng speakers: voice-variant files drawn at random.

A variant sets vocal-tract length (formant scale), formant jitter, pitch, breath, spectral tilt and
stress; https://github.com/espeak-ng/espeak-ng/blob/master/docs/voices.md describes the fields.
"""

import os
import random
from typing import NamedTuple

NEAR_COPIES = 8


class Voice(NamedTuple):
    """A speaker: its variant files by name, and its speaking rate in words per minute."""

    variants: dict[str, str]
    rate: int


def draw_voice(name: str, seed: int, *, female: bool) -> Voice:
    """Draw a speaker as a few near-copies: with one drawn per utterance, no two are alike."""
    rng = random.Random(f"voice {seed} {name}")
    lines = _variant_lines(rng, female)
    variants = {}
    for copy in range(NEAR_COPIES):
        variant = f"{name}-{copy}"
        body = [_jitter(line, rng) for line in lines]
        variants[variant] = "\n".join(["language variant", f"name {variant}", *body]) + "\n"
    return Voice(variants, rng.randint(140, 205))


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
        lines.append(
            "breath " + " ".join(str(max(0, breath + rng.randint(-1, 2))) for _ in range(8))
        )
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


def write_data_folder(parent: str, engine_data: str, variants: dict[str, str]) -> None:
    """Lay out `parent/espeak-ng-data`: links to the engine's own data for English, and variants.

    Nothing is written where the engine is installed.
    """
    data = os.path.join(parent, "espeak-ng-data")
    voices = os.path.join(data, "voices", "!v")
    os.makedirs(voices)
    for name in os.listdir(engine_data):
        if name == "en_dict" or not name.endswith(("_dict", "voices")):
            os.symlink(os.path.join(engine_data, name), os.path.join(data, name))
    for name, text in variants.items():
        with open(os.path.join(voices, name), "w", encoding="ascii") as file:
            file.write(text)
