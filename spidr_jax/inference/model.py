"""A model in use: `load` it, then ask for features, codebook probabilities or units.

B batch, S samples, T frames, D model width, V codes per codebook, n layers asked for.
"""

import math
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.inference import windows
from spidr_jax.inference.forward import Forward, JointForward, make_forward
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights.load import read

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_EPSILON = 1e-5  # of the standardisation in training
Put = Callable[[np.ndarray], Any]
Utterance = tuple[Any, np.ndarray]


def load(
    path: str | os.PathLike[str],
    *,
    model_type: str | None = None,
    dtype: str = "float32",
    max_seconds: float = windows.MAX_SECONDS,
) -> "SpeechModel":
    """Load a trained model for use.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, or a .pt or
            .safetensors file of the PyTorch side.
        model_type: "spidr" or "dinosr", for a file that does not say it.
        dtype: "float32" or "bfloat16", of the computation.
        max_seconds: longer audio is cut into windows; `spidr_jax.windows` states the rule.

    Raises:
        FileNotFoundError: there is nothing there.
        ImportError: torch or safetensors is needed for that file.
        ValueError: it cannot be used; the message says why in one line.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: allowed is {' or '.join(DTYPES)}")
    if not isinstance(max_seconds, numbers.Real) or not math.isfinite(max_seconds):
        raise ValueError(
            f"max_seconds = {max_seconds!r}: allowed is a number above {2 * windows.CONTEXT:g}"
        )
    found = read(path, model_type, student_only=True)
    return SpeechModel(found.config, found.arrays["params"], DTYPES[dtype], max_seconds, found.step)


class SpeechModel:
    """A trained student. Methods take 16 kHz mono audio and give numpy arrays.

    Their arguments in common:
        waveform: [S] for one utterance or [B, S] for a padded batch; numpy or JAX, floating point
            in [-1, 1] or int16.
        layer: a layer's number, counted from 1, or a sequence of n of them, which puts an axis of
            n in front of the result.
        lengths: valid samples of each utterance of a batch, [B]; None if nothing is padded. What
            an utterance gets does not depend on the others; frames after its last are 0
            (units: -1).
        sample_rate: of the waveform, in Hz; only 16,000 is taken.
        standardised: whether each utterance has mean 0 and variance 1 already; else it is made so
            over its whole length, as in training.

    They raise ValueError where an argument is none of these, and where an utterance is too short
    for a frame. One frame is 20 ms; arrays are compiled for a few rounded lengths only.

    Attributes:
        config: the architecture.
        params: the student side's parameters.
        step: finished training steps.
    """

    def __init__(
        self, config: ModelConfig, params: Any, dtype: Any, max_seconds: float, step: int = 0
    ) -> None:
        """Take parameters as `model.init_params` gives them; see `load`."""
        self.config, self.step = config, step
        self.params = jax.device_put(jax.tree.map(np.ascontiguousarray, params))
        self._dtype = dtype
        self._max_samples = round(max_seconds * windows.SAMPLE_RATE)
        self._forwards: dict[tuple[str, tuple[int, ...]], Forward] = {}

    def features(self, waveform: Any, layer: int | Sequence[int] = 6, **options: Any) -> np.ndarray:
        """The layer's features: feed-forward output before the residual, float32 [(n, B,) T, D]."""
        return self._ask("features", waveform, layer, **options)

    def codebooks(
        self, waveform: Any, layer: int | Sequence[int] | None = None, **options: Any
    ) -> np.ndarray:
        """Probabilities of the layer's codes, float32 [(n, B,) T, V]; of all K layers if None."""
        return self._ask(
            "codebooks",
            waveform,
            self.config.codebook_layers if layer is None else layer,
            **options,
        )

    def units(self, waveform: Any, layer: int | Sequence[int] = 6, **options: Any) -> np.ndarray:
        """The layer's most probable codes, int32 [(n, B,) T]."""
        return self._ask("units", waveform, layer, **options)

    def num_frames(self, num_samples: Any) -> Any:
        """Frames of so many samples (int or integer array)."""
        return self.config.framing.num_frames(num_samples)

    def forward(self, kind: str, layers: tuple[int, ...]) -> Forward:
        """The jitted function for these layers, made once; see `forward.make_forward`."""
        if (kind, layers) not in self._forwards:
            self._forwards[kind, layers] = make_forward(self.config, self._dtype, kind, layers)
        return self._forwards[kind, layers]

    def stream(
        self, kind: str, layers: tuple[int, ...], utterances: Iterable[Utterance], **options: Any
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Outputs [n, T, ...] of many standardised utterances; see `stream`."""
        forward = self.forward(kind, layers)
        options = {"max_samples": self._max_samples} | options
        return stream(forward, self.params, self.config, utterances, **options)

    def _ask(
        self,
        kind: str,
        waveform: Any,
        layer: int | Sequence[int],
        *,
        lengths: Any = None,
        sample_rate: int = windows.SAMPLE_RATE,
        standardised: bool = False,
    ) -> np.ndarray:
        layers, one_layer = _layers(layer)
        rows = _rows(waveform, lengths, sample_rate)
        given = np.shape(waveform)
        if len(given) == 2 and self.num_frames(given[1]) < 1 <= self.num_frames(given[0]):
            raise ValueError(
                f"waveform: shape {given} looks like [samples, channels]; "
                "allowed is [S], mono, or a batch [B, S]"
            )
        for row in rows:
            if self.num_frames(len(row)) < 1:
                raise ValueError(f"waveform: an utterance of {len(row)} samples gives no frame")
        if not standardised:
            rows = [standardise(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        # one batch a length, and rows rounded to a power of two: few shapes are compiled
        budget = 2 ** math.ceil(math.log2(len(rows))) * windows.round_up(
            min(len(rows[order[-1]]), self._max_samples)
        )
        outputs = dict(
            self.stream(kind, layers, ((i, rows[i]) for i in order), batch_samples=budget)
        )
        if np.ndim(waveform) == 1:
            result = outputs[0]
        else:
            shape = (len(layers), len(rows), int(self.num_frames(np.shape(waveform)[1])))
            empty = -1 if kind == "units" else 0
            result = np.full(shape + outputs[0].shape[2:], empty, outputs[0].dtype)
            for i, output in outputs.items():
                result[:, i, : output.shape[1]] = output
        return result[0] if one_layer else result


def stream(
    forward: Forward | JointForward,
    params: Any,
    config: ModelConfig,
    utterances: Iterable[Utterance],
    *,
    batch_samples: int,
    max_samples: int = round(windows.MAX_SECONDS * windows.SAMPLE_RATE),
    devices: int = 1,
    put: Put = jnp.asarray,
) -> Iterator[tuple[Any, Any]]:
    """Outputs [n, T, ...] of many utterances, in their order, in batches of a few shapes.

    Args:
        forward: of `make_forward`, or of `make_joint_forward` for a dict of outputs by kind.
        params: the student side's parameters.
        config: the architecture.
        utterances: keys with standardised waveforms [S], best sorted by length.
        batch_samples: padded samples of a batch, at most (a single row may be longer).
        max_samples: a longer utterance is cut into windows.
        devices: what the rows of a batch are a multiple of.
        put: brings an array of a batch, [B, ...], to the devices.
    """
    whole: list[Any] = []
    for batch in _batches(_pieces(utterances, config, max_samples), batch_samples, devices):
        outputs = _run(forward, params, batch, put)
        for piece, output in zip(batch.pieces, outputs, strict=True):
            first, end = piece.window.first, piece.window.first + piece.window.frames
            whole.append(jax.tree.map(lambda x, kept=slice(first, end): x[:, kept], output))
            if piece.ends:
                yield piece.key, jax.tree.map(_joined, *whole)
                whole = []


def standardise(waveform: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(var + 1e-5) over all of an utterance [S], float32, as in training."""
    wide = waveform.astype(np.float64)
    return ((wide - wide.mean()) / np.sqrt(wide.var() + _EPSILON)).astype(np.float32)


def _joined(*parts: np.ndarray) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class _Piece(NamedTuple):
    """One window of an utterance; `ends` marks the last."""

    key: Any
    samples: np.ndarray
    window: windows.Window
    ends: bool


class _Batch(NamedTuple):
    pieces: list[_Piece]
    rows: int
    length: int


def _pieces(
    utterances: Iterable[Utterance], config: ModelConfig, max_samples: int
) -> Iterator[_Piece]:
    for key, waveform in utterances:
        cuts = windows.cut(len(waveform), config.framing, max_samples)
        for i, window in enumerate(cuts):
            samples = waveform[window.start : window.stop]
            yield _Piece(key, samples, window, i == len(cuts) - 1)


def _batches(pieces: Iterable[_Piece], batch_samples: int, devices: int) -> Iterator[_Batch]:
    """Fill batches in order; their rows depend on their length alone."""

    def rows(length: int) -> int:
        return max(batch_samples // length // devices, 1) * devices

    batch: list[_Piece] = []
    length = 0
    for piece in pieces:
        longer = max(length, windows.round_up(len(piece.samples)))
        if batch and len(batch) + 1 > rows(longer):
            yield _Batch(batch, rows(length), length)
            batch, longer = [], windows.round_up(len(piece.samples))
        batch.append(piece)
        length = longer
    if batch:
        yield _Batch(batch, rows(length), length)


def _run(forward: Forward | JointForward, params: Any, batch: _Batch, put: Put) -> list[Any]:
    """Outputs [n, T, ...] of the pieces of a batch, padded frames included."""
    waveforms = np.zeros((batch.rows, batch.length), np.float32)
    lengths = np.full(batch.rows, batch.length, np.int32)
    for row, piece in enumerate(batch.pieces):
        waveforms[row, : len(piece.samples)] = piece.samples
        lengths[row] = len(piece.samples)
    output = jax.tree.map(np.asarray, forward(params, put(waveforms), put(lengths)))
    return [jax.tree.map(lambda x, i=i: x[:, i], output) for i in range(len(batch.pieces))]


def _layers(layer: Any) -> tuple[tuple[int, ...], bool]:
    """The numbers in an argument, and whether it is a single one."""
    try:
        one_layer = np.ndim(layer) == 0
        layers = tuple(map(operator.index, [layer] if one_layer else layer))
    except (TypeError, ValueError):  # of np.ndim where a list is ragged
        layers = ()
    if not layers:
        raise ValueError(f"layer = {layer!r}: allowed is an integer or a sequence of several")
    return layers, one_layer


def _rows(waveform: Any, lengths: Any, sample_rate: int) -> list[np.ndarray]:
    """The utterances of an argument, each [S], checked."""
    if sample_rate != windows.SAMPLE_RATE:
        raise ValueError(
            f"sample_rate = {sample_rate}: allowed is 16000; resample the audio first, files "
            "with `python -m spidr_jax.data.manifest prepare`"
        )
    array = np.asarray(waveform)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / 32768
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"waveform: {array.dtype}; allowed is floating point in [-1, 1] or int16")
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"waveform: shape {array.shape}; allowed is [S], mono, or a batch [B, S]")
    if array.ndim == 1:
        if lengths is not None:
            raise ValueError("lengths: are for a batch [B, S]; the waveform is one utterance")
        return [_finite(array)]
    valid = np.full(len(array), array.shape[1]) if lengths is None else np.asarray(lengths)
    if valid.shape != (len(array),) or not np.issubdtype(valid.dtype, np.integer):
        raise ValueError(f"lengths: {valid.dtype} {valid.shape}; due is one integer for each row")
    if valid.min() < 0 or valid.max() > array.shape[1]:
        raise ValueError(f"lengths: {valid.min()} to {valid.max()} of {array.shape[1]} samples")
    return [_finite(row[:length]) for row, length in zip(array, valid, strict=True)]


def _finite(row: np.ndarray) -> np.ndarray:
    if not np.isfinite(row).all():
        raise ValueError("waveform: NaN or infinite samples")
    return row.astype(np.float32)
