"""Audio files for the tests, sound ones and every kind of broken one."""

import csv
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from spidr_jax.data import manifest

RATE = 16_000


def hiss(seed, samples):
    """Noise with a slow swell, so that no two parts of it are alike."""
    rng = np.random.default_rng(seed)
    swell = 2000 + 1500 * np.sin(np.arange(samples) / 3000 + seed)
    return (rng.standard_normal(samples) * swell).clip(-32768, 32767).astype(np.int16)


def tone(hertz, seconds, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def save(path, wave, rate=RATE, subtype=None):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    return path


def _empty(path):
    path.write_bytes(b"")
    return path


def _garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


# Each makes, from a name without suffix and sound PCM, a file that cannot be trained on.
BROKEN = {
    "truncated_wav": lambda stem, pcm: truncate(save(f"{stem}.wav", pcm)),
    "truncated_flac": lambda stem, pcm: truncate(save(f"{stem}.flac", pcm)),
    "bit_flipped_flac": lambda stem, pcm: flip_bit(save(f"{stem}.flac", pcm)),
    "garbage": lambda stem, pcm: _garbage(Path(f"{stem}.flac")),
    "empty": lambda stem, pcm: _empty(Path(f"{stem}.wav")),
    "missing": lambda stem, pcm: Path(f"{stem}.flac"),
    "wrong_rate": lambda stem, pcm: save(f"{stem}.wav", pcm, 8000),
    "stereo": lambda stem, pcm: save(f"{stem}.flac", np.stack([pcm, pcm], 1)),
    "nan": lambda stem, pcm: save(f"{stem}.wav", np.full(len(pcm), np.nan, "f4"), RATE, "FLOAT"),
    "unscaled": lambda stem, pcm: save(f"{stem}.wav", pcm.astype("f4"), RATE, "FLOAT"),
}


def write_csv(path, rows, names=("fileid", "path", "num_samples")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    return str(path)


def make_corpus(folder, count, suffix=".flac", shortest=4000, longest=30_000, seed=0):
    """Write `count` files and their manifest; give its path and the PCM by file id."""
    rng = np.random.default_rng(seed)
    sounds = {f"u{i}": hiss(i, int(rng.integers(shortest, longest))) for i in range(count)}
    for fileid, pcm in sounds.items():
        save(folder / f"{fileid}{suffix}", pcm)
    rows = [(fileid, f"{fileid}{suffix}", len(pcm)) for fileid, pcm in sounds.items()]
    return write_csv(folder / "manifest.csv", rows), sounds


def pack(folder, tar):
    with tarfile.open(tar, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder))
    return str(tar)


def write(path, text):
    """A text file; gives its path."""
    path.write_text(text, encoding="utf-8")
    return str(path)


def run(*arguments):
    """The command of manifests; gives its exit code."""
    return manifest.main([str(argument) for argument in arguments])


def compiled(folder):
    """The columns that a folder's manifests were compiled to."""
    return [path.name for path in folder.iterdir() if ".columns-" in path.name]
