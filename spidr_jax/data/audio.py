"""Audio files to 16 kHz mono int16, and the two numbers that standardise an utterance.

S samples of one utterance.
"""

import io
import os
import re
import stat

import numpy as np
import soundfile

from spidr_jax.data import storage
from spidr_jax.data.corpus import Row

SAMPLE_RATE = 16_000
_EPSILON = 1e-5  # of the reference's layer_norm over a waveform in [-1, 1]
_FULL_SCALE = 32_768
_MAX_FRAMES = 1 << 28  # 4.7 h: a longer one is a streamed file's or a damaged header's
_HEADER = 4096  # bytes, in which the data of a WAV begin
_SUMMED = 512
_MAX_PEAK = 4.0  # float audio beyond it is not on the [-1, 1] scale


class AudioError(Exception):
    """An utterance that cannot be trained on: the message names its file and the reason.

    Attributes:
        kind: the reason in a word or two, to count by.
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        """Say `message`."""
        super().__init__(message)
        self.kind = kind


def open_sound(row: Row, *, max_frames: int = _MAX_FRAMES) -> soundfile.SoundFile:
    """Open the audio of a row: a file, a member of an uncompressed tar, or a URL of either.

    Raises:
        AudioError: missing, empty, not audio that libsndfile reads, or longer than `max_frames`.
        ImportError: with what to install to read such a URL.
    """
    try:
        sound = _open(row)
    except ImportError:
        raise
    except Exception as error:  # whatever it is: one row must not end a run
        named = getattr(error, "strerror", None) or getattr(error, "error_string", None) or error
        raise AudioError(f"{row.place}: cannot be read: {named}") from None
    if sound.frames > max_frames:
        sound.close()
        raise AudioError(f"{row.place}: no length in its header, or too long: encode it again")
    return sound


def _open(row: Row) -> soundfile.SoundFile:
    where = row.archive or row.path
    storage.check_allowed(where)
    if not storage.is_remote(where):
        found = os.stat(where)  # it names what libsndfile hides behind "System error"
        if not stat.S_ISREG(found.st_mode):
            raise OSError("no regular file")  # a pipe would be waited for, a device read for ever
        if not found.st_size:
            raise OSError("the file is empty")
        if row.byte_offset + row.byte_size > found.st_size:
            raise OSError("the archive ends before it does")
    sound = None if storage.is_remote(where) else _open_in_place(row, where)
    if sound is None:
        sound = soundfile.SoundFile(io.BytesIO(read_bytes(row)))
    if sound.format == "WAV" and not sound.frames:
        # Its writer never came to fill in the length: so libsndfile measures it by the file's end.
        sound.close()
        content = read_bytes(row)
        sound = soundfile.SoundFile(io.BytesIO(content[:4] + b"\x08\0\0\0" + content[8:]))
    return sound


def _open_in_place(row: Row, where: str) -> soundfile.SoundFile | None:
    """Let libsndfile read the file itself, unless it could not tell where the audio ends.

    A file object in Python is called back, under the interpreter lock, for every few kilobytes.
    But a descriptor in the middle of a tar is read on into the next member, where the header
    promises more than there is; only FLAC's frames show that.
    """
    with open(where, "rb", buffering=0) as file:
        file.seek(row.byte_offset)
        header = file.read(_HEADER) if row.archive else b""
        if row.archive and header[:4] != b"fLaC" and not _is_whole_wav(header, row.byte_size):
            return None
        descriptor = os.dup(file.fileno())
    os.lseek(descriptor, row.byte_offset, os.SEEK_SET)
    return soundfile.SoundFile(descriptor, closefd=True)  # closes it also where it fails


def _is_whole_wav(header: bytes, size: int) -> bool:
    at = 12
    while header[at : at + 4] not in (b"data", b""):
        at += 8 + int.from_bytes(header[at + 4 : at + 8], "little")
    samples = int.from_bytes(header[at + 4 : at + 8], "little")
    return header[:4] == b"RIFF" and 0 < samples <= size - at - 8


def read_bytes(row: Row) -> bytes:
    """Read the file, or the member of a tar, that holds the audio of a row.

    Raises:
        OSError: whatever the file system reports.
    """
    where = row.archive or row.path
    if storage.is_remote(where):
        span = (row.byte_offset, row.byte_size) if row.archive else (None, None)
        return storage.read_range(where, *span)
    with open(where, "rb") as file:
        file.seek(row.byte_offset)
        return file.read(row.byte_size if row.archive else -1)


def check_format(place: str, rate: int, channels: int) -> None:
    """Refuse what is not 16 kHz mono.

    Raises:
        AudioError: naming the file, what it is and what turns it into 16 kHz mono.
    """
    if rate != SAMPLE_RATE or channels != 1:
        raise AudioError(
            f"{place}: {rate} Hz with {channels} channel(s) where {SAMPLE_RATE} Hz mono is due; "
            "convert with `python -m spidr_jax.data.manifest prepare`",
            "of a wrong rate" if channels == 1 else "of several channels",
        )


def decode(sound: soundfile.SoundFile, place: str, frames: int | None = None) -> np.ndarray:
    """Decode the next frames of an open file, or all, to int16 [S] or [S, channels > 1].

    Raises:
        AudioError: damaged, or float audio that is not finite or not within [-1, 1].
    """
    frames = sound.frames if frames is None else frames  # GSM cannot say what is left
    try:
        if sound.subtype.startswith("PCM_"):
            pcm: np.ndarray = sound.read(frames, dtype="int16")
            return pcm
        wave = sound.read(frames, dtype="float32")
    except Exception as error:  # see `open_sound`
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
        AudioError: unreadable, damaged, not 16 kHz mono, shorter than the manifest says,
            or more than twice as long.
        ImportError: with what to install to read such a URL.
    """
    with open_sound(row) as sound:
        check_format(row.place, sound.samplerate, sound.channels)
        if sound.frames > 2 * row.num_samples + SAMPLE_RATE:
            raise AudioError(
                f"{row.place}: {sound.frames} samples in it, {row.num_samples} by the manifest: "
                "write the manifest again"
            )
        pcm = decode(sound, row.place)
    if len(pcm) < row.num_samples:
        raise AudioError(
            f"{row.place}: truncated: {len(pcm)} samples, the manifest says {row.num_samples}"
        )
    return pcm


_STARTS = {  # of a stream of audio, by libsndfile's format
    "FLAC": rb"fLaC[\0\x80]\0\0\x22",
    "MP3": rb"\0{9}(?:Xing|Info)",
    "OGG": rb"OggS\0\x02.{22}(?:\x01vorbis|OpusHead|Speex|\x7fFLAC)",
}


def check_single(row: Row, sound: soundfile.SoundFile) -> None:
    """Refuse files joined end to end, of which libsndfile reads the first alone.

    Raises:
        AudioError: naming the file.
    """
    start = _STARTS.get(sound.format)
    count = len(re.findall(start, read_bytes(row), re.DOTALL)) if start else 1
    if count > 1:
        raise AudioError(
            f"{row.place}: {count} {sound.format} files joined in one, of which only the first "
            "would be read: take them apart, or encode them again as one",
            "joined",
        )


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
