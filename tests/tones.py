"""A corpus of tones, one for each phone, by two speakers, and a run to evaluate on it."""

from pathlib import Path

import numpy as np
import soundfile
import tiny

import spidr_jax
from spidr_jax.eval import items

SPEAKERS = {"s": 1.0, "t": 1.15}
PHONES = {"A": 0.06, "E": 0.11, "O": 0.2, "SIL": 0.0}  # radians a sample


def write(folder: Path) -> Path:
    """Write the corpus and the run `run`; give the folder."""
    random = np.random.default_rng(0)
    manifest, alignment = ["fileid,path,num_samples,speaker"], []
    lines = [" ".join(items.COLUMNS)]
    for number in range(8):
        speaker = "st"[number % 2]
        phones = [*random.choice(["A", "E", "O"], 14 + number % 2), "SIL"]
        parts, now = [], 0.0
        for i, phone in enumerate(phones):
            length = int(random.integers(1_200, 1_500))
            tone = np.sin(np.arange(length) * PHONES[phone] * SPEAKERS[speaker])
            parts.append(0.2 * tone + 0.02 * random.standard_normal(length))
            times = f"{now:.4f} {now + length / 16_000:.4f}"
            now += length / 16_000
            alignment.append(f"u{number} {times} {phone}")
            if phone != "SIL":
                lines.append(f"u{number} {times} {phone} B {'CD'[i % 2]} {speaker}")
        wave = np.concatenate(parts)
        soundfile.write(folder / f"u{number}.wav", wave, 16_000, subtype="PCM_16")
        manifest.append(f"u{number},u{number}.wav,{len(wave)},{speaker}")
    (folder / "manifest.csv").write_text("\n".join(manifest) + "\n")
    (folder / "few.csv").write_text("\n".join(manifest[:4]) + "\n")
    (folder / "alignment.txt").write_text("\n".join(alignment) + "\n")
    (folder / "t.item").write_text("\n".join(lines) + "\n")
    write_run(folder)
    return folder


def write_run(folder: Path) -> None:
    """A model with new parameters, but for heads that use all their codes."""
    tiny.write_run(folder / "new")
    speech = spidr_jax.load(folder / "new")
    feats = speech.features(soundfile.read(folder / "u0.wav")[0], layer=(2, 3))
    kernel = 50 * np.asarray(speech.params["heads"]["kernel"])
    bias = -(feats @ kernel).mean(axis=1)
    tiny.write_run(
        folder / "run", params=speech.params | {"heads": {"kernel": kernel, "bias": bias}}
    )


def command(folder: Path, *more: str, without: str = "") -> list[str]:
    """The command line that evaluates the run on the corpus."""
    line = []
    for name, value in (
        ("--checkpoint", "run"),
        ("--manifest", "manifest.csv"),
        ("--alignment", "alignment.txt"),
        ("--item", "t.item"),
    ):
        if name not in (*more, *without.split()):
            line += [name, str(folder / value)]
    return [*line, *more]
