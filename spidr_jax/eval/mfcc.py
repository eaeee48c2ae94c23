"""MFCC and their deltas at 50 Hz: what speech features are compared with."""

import numpy as np
from numpy.typing import NDArray

_SAMPLE_RATE = 16_000
_HOP, _WINDOW = 320, 400  # the model's stride and field, so that frames stand at the same times
_COEFFICIENTS = 13
_DELTA = 9  # frames, of the slope's window


def mfcc(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """13 coefficients with their first and second deltas.

    Args:
        waveform: 16 kHz mono in [-1, 1], [S], S at least 400.

    Returns:
        [T, 39], as many frames as the model gives.

    Raises:
        ValueError: it is too short for a frame.
    """
    import librosa

    if len(waveform) < _WINDOW:
        raise ValueError(f"waveform: {len(waveform)} samples are too short for a frame")
    values = librosa.feature.mfcc(
        y=np.asarray(waveform, np.float32),
        sr=_SAMPLE_RATE,
        n_mfcc=_COEFFICIENTS,
        n_fft=_WINDOW,
        hop_length=_HOP,
        n_mels=40,
        center=False,
    )
    deltas = [
        librosa.feature.delta(values, width=_DELTA, order=order, mode="nearest") for order in (1, 2)
    ]
    return np.concatenate([values, *deltas]).T.astype(np.float32)
