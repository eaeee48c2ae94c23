"""Audio files to 16 kHz mono int16, and the two numbers that standardise an utterance.

S samples of one utterance.
"""

import io
import os

import numpy as np
import soundfile

from spidr_jax.data import storage
from spidr_jax.data.corpus import Row

SAMPLE_RATE = 16_000
_EPSILON = 1e-5  # of the reference's layer_norm over a waveform in [-1, 1]
_FULL_SCALE = 32_768
_MAX_FRAMES = 1 << 28  # 4.7 h: a longer one is a streamed file's or a damaged header's
_EMBEDDABLE = (".wav", ".flac")  # libsndfile reads them from the middle of a file
_SUMMED = 512
_MAX_PEAK = 4.0  # float audio beyond it is not on the [-1, 1] scale


class AudioError(Exception):
    """An utterance that cannot be trained on: the message names its file and the reason."""


def open_sound(row: Row) -> soundfile.SoundFile:
    """Open the audio of a row: a file, a member of an uncompressed tar, or a URL of either.

    Raises:
        AudioError: missing, empty, not audio that libsndfile reads, or without a known length.
        ImportError: with what to install to read such a URL.
    """
    where = row.archive or row.path
    try:
        sound = _open(row, where)
    except soundfile.LibsndfileError as error:
        reason = _system_reason(where) or error.error_string
        raise AudioError(f"{row.place}: cannot be read: {reason}") from None
    except OSError as error:
        raise AudioError(f"{row.place}: cannot be read: {error.strerror or error}") from None
    if sound.frames > _MAX_FRAMES:
        sound.close()
        raise AudioError(f"{row.place}: its header gives no length (streamed?): encode it anew")
    return sound


def _open(row: Row, where: str) -> soundfile.SoundFile:
    if storage.is_remote(where):
        span = (row.byte_offset, row.byte_size) if row.archive else (None, None)
        return soundfile.SoundFile(io.BytesIO(storage.read_range(where, *span)))
    return _open_member(row) if row.archive else soundfile.SoundFile(where)


def _system_reason(path: str) -> str:
    """Say what libsndfile hides behind "System error"."""
    try:
        with open(path, "rb") as file:
            return "" if file.read(1) else "the file is empty"
    except OSError as error:
        return error.strerror or str(error)


def _open_member(row: Row) -> soundfile.SoundFile:
    if not row.path.lower().endswith(_EMBEDDABLE):
        with open(row.archive, "rb") as archive:
            archive.seek(row.byte_offset)
            return soundfile.SoundFile(io.BytesIO(archive.read(row.byte_size)))
    # A descriptor at the member's offset is read by libsndfile itself; a file object in Python
    # is called back, under the interpreter lock, for every few kilobytes.
    descriptor = os.open(row.archive, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.lseek(descriptor, row.byte_offset, os.SEEK_SET)
    except OSError:
        os.close(descriptor)
        raise
    sound = soundfile.SoundFile(descriptor, closefd=True)  # closes it also where it fails
    width = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}.get(sound.subtype, 0)
    if sound.format != "FLAC" and sound.frames * sound.channels * width > row.byte_size:
        sound.close()  # it would be read on into the next member
        raise AudioError(f"{row.place}: truncated: the header promises more than its bytes hold")
    return sound


def check_format(place: str, rate: int, channels: int) -> None:
    """Refuse what is not 16 kHz mono.

    Raises:
        AudioError: naming the file, what it is and what turns it into 16 kHz mono.
    """
    if rate != SAMPLE_RATE or channels != 1:
        raise AudioError(
            f"{place}: {rate} Hz with {channels} channel(s) where {SAMPLE_RATE} Hz mono is due; "
            "convert with `python -m spidr_jax.data.manifest prepare`"
        )


def decode(sound: soundfile.SoundFile, place: str) -> np.ndarray:
    """Decode all of an open file to int16 [S], or [S, channels] where it has several.

    Raises:
        AudioError: damaged, or float audio that is not finite or not within [-1, 1].
    """
    try:
        if sound.subtype.startswith("PCM_"):
            pcm: np.ndarray = sound.read(dtype="int16")
            return pcm
        wave = sound.read(dtype="float32")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{place}: damaged: {error}") from None
    # libsndfile does not scale float audio when it is read as int16.
    peak = float(np.abs(wave).max(initial=0.0))
    if not peak <= _MAX_PEAK:  # also where it is NaN
        reason = f"not within [-1, 1]: peak {peak:g}" if np.isfinite(peak) else "NaN or infinite"
        raise AudioError(f"{place}: float samples {reason}")
    scaled = np.rint(wave * _FULL_SCALE)
    return np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def read_pcm(row: Row) -> np.ndarray:
    """Decode a whole utterance to int16 [S], S at least `row.num_samples`.

    Raises:
        AudioError: unreadable, damaged, not 16 kHz mono, or shorter than the manifest says.
        ImportError: with what to install to read such a URL.
    """
    with open_sound(row) as sound:
        check_format(row.place, sound.samplerate, sound.channels)
        pcm = decode(sound, row.place)
    if len(pcm) < row.num_samples:
        raise AudioError(
            f"{row.place}: truncated: {len(pcm)} samples, the manifest says {row.num_samples}"
        )
    return pcm


def standardisation(pcm: np.ndarray) -> tuple[np.float32, np.float32]:
    """Give mean and 1/std such that `(pcm - mean) * inv_std` is the standardised utterance.

    It equals `(x - x.mean()) / sqrt(x.var() + 1e-5)` for `x = pcm / 32768` (the reference's
    `layer_norm` over a whole utterance, before cropping).

    Args:
        pcm: int16 [S], S > 0.
    """
    # Float32 sums of 512 samples (exact, for integers under 2**15), then float64 sums of those:
    # near the speed of the one, the accuracy of the other, and no BLAS, whose threads would
    # fight with the decoding ones.
    whole = len(pcm) // _SUMMED * _SUMMED
    parts = [pcm[:whole].reshape(-1, _SUMMED), pcm[whole:].reshape(1, -1)]
    waves = [part.astype(np.float32) for part in parts]
    mean = sum(float(wave.sum(axis=1).sum(dtype=np.float64)) for wave in waves) / len(pcm)
    middle = round(mean)
    square = 0.0
    for wave in waves:
        wave -= middle
        square += float(np.einsum("ij,ij->i", wave, wave).sum(dtype=np.float64))
    variance = square / len(pcm) - (mean - middle) ** 2
    return np.float32(mean), np.float32(1.0 / np.sqrt(variance + _EPSILON * _FULL_SCALE**2))


def standardised(waveform: np.ndarray) -> np.ndarray:
    """A whole utterance [S], int16 or floating point in [-1, 1], with mean 0 and variance 1."""
    if waveform.dtype == np.int16:
        mean, inv_std = standardisation(waveform)
        return (waveform - mean) * inv_std
    wide = waveform.astype(np.float64)
    return ((wide - wide.mean()) / np.sqrt(wide.var() + _EPSILON)).astype(np.float32)
