"""`manifest prepare`: any rate, channels and format to 16 kHz mono FLAC."""

import contextlib
import errno
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import soundfile
import soxr

from spidr_jax.data import audio, files, parallel, scan
from spidr_jax.data.corpus import Row

EXTENSIONS = (
    *scan.EXTENSIONS,
    *(".opus", ".m4a", ".aac", ".mp4", ".wma", ".webm", ".aiff", ".aif", ".au", ".sph", ".w64"),
)
MANIFEST = "manifest.csv"
_JOURNAL = ".prepared.jsonl"
_MAX_FRAMES = 1 << 40  # more is a header of no length
_BLOCK = 1 << 20  # frames in memory at a time


def prepare(
    source: str, output: str, *, extensions: Sequence[str] = EXTENSIONS, jobs: int = 0
) -> scan.Summary:
    """Convert a folder or tar of audio to 16 kHz mono FLAC, and write `manifest.csv` beside it.

    Channels are averaged; other rates are resampled by soxr (HQ). A file is made again only where
    its source has changed since, and none is there half written, so the command may be repeated
    after an interruption. The manifest holds what is in the source now. Folders stay; a.wav becomes
    a.flac, or a.wav.flac where a.mp3 is there too. Files that cannot be read are listed.

    Args:
        source: folder or uncompressed tar.
        output: folder for the FLAC files.
        extensions: suffixes of the files to take, in any case.
        jobs: threads; 0 for one a core.

    Raises:
        FileNotFoundError: where there is no `source`.
        ValueError: nothing usable in `source`, or `output` lies inside it, or holds what was made
            of another source.
    """
    output = os.path.abspath(output)
    listing = scan.find_audio(source, extensions)
    if not listing.in_archive and os.path.commonpath([listing.root, output]) == listing.root:
        raise ValueError(f"{output}: lies inside {listing.root}; name a folder outside it")
    targets = _targets(listing.names)
    made = _read_journal(output, listing.root)
    os.makedirs(output, exist_ok=True)

    def convert(index: int) -> str:
        row, name, target = listing.row(index), targets[index], os.path.join(output, targets[index])
        try:
            found = os.stat(row.archive or row.path)
            size = row.byte_size or found.st_size
            stamp = [listing.names[index], row.byte_offset, size, found.st_mtime_ns]
            if made.get(name) == stamp and os.path.exists(target):
                return "there"
            _write(target, to_16k_mono(row))
        except audio.AudioError as error:
            return str(error)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG):
                raise  # as where the disk is full
            return f"{row.place}: {error.strerror}"
        journal.write(_line(name, stamp))
        return ""

    with open(os.path.join(output, _JOURNAL), "ab", buffering=0) as journal:
        journal.write(_line("", listing.root))
        results = list(parallel.each(convert, len(targets), jobs=jobs, title="converting"))
    there = results.count("there")
    problems = listing.problems + [text for text in results if text not in ("", "there")]
    usable = [name for name, text in zip(targets, results, strict=True) if text in ("", "there")]
    if not usable:
        raise ValueError(f"{source}: none of {len(results)} files is usable; {problems[0]}")
    flacs = scan.Listing(output, False, sorted(usable), [], [])
    written = scan.write_listing(flacs, os.path.join(output, MANIFEST), jobs=jobs)
    line = (
        f"{written.line}; {results.count('')} converted, {there} there before, "
        f"{len(problems)} of {len(results)} unreadable"
    )
    return scan.Summary(line, problems + written.problems)


def _line(name: str, stamp: object) -> bytes:
    return f"\n{json.dumps({name: stamp})}\n".encode()  # after one that a kill has cut off


def _read_journal(output: str, source: str) -> dict[str, object]:
    """What each FLAC file was made of: name, offset, size and time; "" has the whole source."""
    made: dict[str, object] = {}
    path = os.path.join(output, _JOURNAL)
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    made |= json.loads(line)
    if made.get("", source) != source:
        raise ValueError(f"{output}: holds what was prepared from {made['']}; name another folder")
    return made


def _write(target: str, blocks: Iterable[np.ndarray]) -> None:
    kind = {"format": "FLAC", "subtype": "PCM_16"}
    with files.replacing(target) as partial:
        try:
            with soundfile.SoundFile(partial, "w", audio.SAMPLE_RATE, 1, **kind) as file:
                for block in blocks:
                    file.write(block)
        except soundfile.LibsndfileError as error:
            raise OSError(f"{target}: cannot be written: {error} (is the disk full?)") from None


def _targets(names: Sequence[str]) -> list[str]:
    whole = [scan.inside(name) for name in names]
    stems = [os.path.splitext(name)[0] for name in whole]
    count = Counter([*stems, *whole])
    return [
        (stem if count[stem] == 1 else name) + ".flac"
        for stem, name in zip(stems, whole, strict=True)
    ]


def to_16k_mono(row: Row) -> Iterator[np.ndarray]:
    """Decode any audio to 16 kHz mono int16, in blocks.

    Raises:
        AudioError: unreadable, damaged, truncated, without a sample, or not finite.
    """
    samples = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal samples
        while len(block := audio.decode(sound, row.place, _BLOCK)):
            samples += len(block)
            yield block

    try:
        sound = audio.open_sound(row, max_frames=_MAX_FRAMES)
    except audio.AudioError as error:
        wave, rate = _decode_by_librosa(row, error)
        yield from _resample([wave], rate)
        return
    with sound:
        audio.check_single(row, sound)
        promised = scan.promised_samples(sound)
        yield from _resample(blocks(), sound.samplerate)
    if not samples or (samples < promised and sound.format != "MP3"):
        raise audio.AudioError(
            f"{row.place}: truncated: {samples} samples of {promised} that its header promises"
        )


def _resample(waves: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Blocks int16 or float [S] or [S, channels] of one recording as 16 kHz mono int16."""
    stream = soxr.ResampleStream(rate, audio.SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for wave in waves:
        if wave.dtype == np.int16 and wave.ndim == 1 and rate == audio.SAMPLE_RATE:
            yield wave
            continue
        wave = wave.astype(np.float32) / (32768 if wave.dtype == np.int16 else 1)
        wave = wave if wave.ndim == 1 else wave.mean(axis=1)
        taken += len(wave)
        if rate != audio.SAMPLE_RATE:
            wave = stream.resample_chunk(wave)
        given += len(wave)
        yield _to_int16(wave)
    if rate != audio.SAMPLE_RATE:
        rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
        due = -(-taken * audio.SAMPLE_RATE // rate) - given  # rounded up
        yield _to_int16(np.pad(rest, (0, max(0, due - len(rest))))[: max(0, due)])


def _to_int16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)


def _decode_by_librosa(row: Row, refused: audio.AudioError) -> tuple[np.ndarray, int]:
    # Only what libsndfile does not know: of a damaged file librosa gives a part without a word.
    unknown = ("Format not recognised", "unimplemented format")
    if row.archive or not any(reason in str(refused) for reason in unknown):
        raise refused
    import librosa

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that libsndfile refused, which is known
            wave, rate = librosa.load(row.path, sr=None, mono=False)
    except Exception:  # its back ends share no exception class
        raise refused from None
    if not wave.size or not np.isfinite(wave).all():
        raise refused
    return wave.T, int(rate)
