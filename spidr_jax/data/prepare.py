"""`manifest prepare`: any rate, channels and format to 16 kHz mono FLAC."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import soundfile

from spidr_jax.data import audio, files, parallel, scan
from spidr_jax.data.corpus import Row

EXTENSIONS = (
    *scan.EXTENSIONS,
    *(".opus", ".m4a", ".aac", ".mp4", ".wma", ".webm", ".aiff", ".aif", ".au", ".sph", ".w64"),
)
MANIFEST = "manifest.csv"


def prepare(
    source: str, output: str, *, extensions: Sequence[str] = EXTENSIONS, jobs: int = 0
) -> scan.Summary:
    """Convert a folder or tar of audio to 16 kHz mono FLAC, and write `manifest.csv` beside it.

    Channels are averaged; other rates are resampled by librosa (soxr_hq). A file that is there
    already is not made again, and none is there half written, so the command may be repeated
    after an interruption. Folders stay; a.wav becomes a.flac, or a.wav.flac where a.mp3 is
    there too. Files that cannot be read are listed.

    Args:
        source: folder or uncompressed tar.
        output: folder for the FLAC files.
        extensions: of the files to take, in any case.
        jobs: threads; 0 for one a core.

    Raises:
        FileNotFoundError: where there is no `source`.
        ValueError: nothing usable in `source`, or `output` lies inside it.
    """
    output = os.path.abspath(output)
    listing = scan.find_audio(source, extensions)
    if not listing.in_archive and os.path.commonpath([listing.root, output]) == listing.root:
        raise ValueError(f"{output}: lies inside {listing.root}; name a folder outside it")
    targets = [os.path.join(output, name) for name in _targets(listing.names)]

    def convert(index: int) -> str:
        if os.path.exists(targets[index]):
            return "there"
        try:
            pcm = to_16k_mono(listing.row(index))
        except audio.AudioError as error:
            return str(error)
        with files.replacing(targets[index]) as partial:
            soundfile.write(partial, pcm, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return ""

    results = list(parallel.each(convert, len(targets), jobs=jobs, title="converting"))
    there = results.count("there")
    problems = listing.problems + [text for text in results if text not in ("", "there")]
    if len(problems) >= len(results):
        raise ValueError(f"{source}: none of {len(results)} files is usable; {problems[0]}")
    written = scan.write_manifest(output, os.path.join(output, MANIFEST), jobs=jobs)
    line = (
        f"{written.line}; {results.count('')} converted, {there} there before, "
        f"{len(problems)} of {len(results)} unreadable"
    )
    return scan.Summary(line, problems + written.problems)


def _targets(names: Sequence[str]) -> list[str]:
    # A member of a tar may be named /a or ../a: it stays inside all the same.
    inside = [os.path.normpath("/" + name).lstrip("/") for name in names]
    stems = [os.path.splitext(name)[0] for name in inside]
    count = Counter(stems)
    return [
        (stem if count[stem] == 1 else name) + ".flac"
        for stem, name in zip(stems, inside, strict=True)
    ]


def to_16k_mono(row: Row) -> np.ndarray:
    """Decode any audio to 16 kHz mono int16 [S].

    Raises:
        AudioError: unreadable, damaged, truncated, without a sample, or not finite.
    """
    wave, rate = _decode_any(row)
    if wave.dtype == np.int16 and wave.ndim == 1 and rate == audio.SAMPLE_RATE:
        return wave
    if wave.dtype == np.int16:
        wave = wave.astype(np.float32) / 32768
    if wave.ndim > 1:
        wave = wave.mean(axis=1)
    if rate != audio.SAMPLE_RATE:
        import librosa  # slow to import, and used by this command alone

        wave = librosa.resample(wave, orig_sr=rate, target_sr=audio.SAMPLE_RATE, res_type="soxr_hq")
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)


def _decode_any(row: Row) -> tuple[np.ndarray, int]:
    try:
        sound = audio.open_sound(row)
    except audio.AudioError as error:
        return _decode_by_librosa(row, error)
    with sound:
        promised = scan.promised_samples(sound)
        pcm = audio.decode(sound, row.place)
        if not len(pcm) or (len(pcm) < promised and sound.format != "MP3"):
            raise audio.AudioError(
                f"{row.place}: truncated: {len(pcm)} samples of {promised} that its header promises"
            )
        return pcm, sound.samplerate


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
