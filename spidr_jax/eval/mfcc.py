"""MFCC and their deltas at 50 Hz: the baseline of speech features."""

import numpy as np
from numpy.typing import NDArray

from spidr_jax.data.audio import SAMPLE_RATE

_WINDOW = 400  # the model's field; its stride is two hops, so that frames stand at the same times
_HOP = 160
_COEFFICIENTS, _MELS = 13, 40
_EPSILON = 1e-5
_DELTA = 9  # hops, of the slope's window


def mfcc(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """13 coefficients with their first and second deltas, each with mean 0 and variance 1.

    Deltas are taken at 100 Hz, over 9 frames, and every second frame is kept, as it is usual; the
    standardisation, over the utterance, takes out much of the speaker.

    Args:
        waveform: 16 kHz mono in [-1, 1], [S], S at least 400.

    Returns:
        [T, 39], as many frames as the model gives, each from the samples that the model sees.

    Raises:
        ValueError: it is too short for a frame.
    """
    import librosa

    if len(waveform) < _WINDOW:
        raise ValueError(f"{len(waveform)} samples are too short for a frame")
    values = librosa.feature.mfcc(
        y=np.asarray(waveform, np.float32),
        sr=SAMPLE_RATE,
        n_mfcc=_COEFFICIENTS,
        n_fft=_WINDOW,
        hop_length=_HOP,
        n_mels=_MELS,
        center=False,
    )
    deltas = [
        librosa.feature.delta(values, width=_DELTA, order=order, mode="nearest") for order in (1, 2)
    ]
    every = np.concatenate([values, *deltas]).T
    every = (every - every.mean(axis=0)) / (every.std(axis=0) + _EPSILON)
    return every[::2].astype(np.float32)
