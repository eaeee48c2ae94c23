"""A model in use: `load` it, then ask for features, codebook probabilities or units.

B batch, S samples, T frames, D model width, V codes per codebook, n layers asked for.
"""

import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.data import audio
from spidr_jax.data.audio import SAMPLE_RATE
from spidr_jax.inference.forward import Forward, make_forward
from spidr_jax.inference.stream import MAX_SECONDS, Utterance, round_up, stream
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights.load import read

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load(
    path: str | os.PathLike[str],
    *,
    model_type: str | None = None,
    dtype: str = "float32",
    max_seconds: float = MAX_SECONDS,
) -> "SpeechModel":
    """Load a trained model for use.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, or a .pt or
            .safetensors file of the PyTorch side.
        model_type: "spidr" or "dinosr", for a file that does not say it.
        dtype: "float32" or "bfloat16", of the computation.
        max_seconds: longer audio is cut into windows; `inference.stream` states the rule.

    Raises:
        FileNotFoundError: there is nothing there.
        ImportError: torch or safetensors is needed for that file.
        ValueError: it cannot be used; the message says why in one line.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: allowed is {' or '.join(DTYPES)}")
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
        sample_rate: the waveform's rate in Hz; only 16,000 is taken.
        standardised: whether each utterance has mean 0 and variance 1 already; else it is made so
            over its whole length, as in training.

    They raise ValueError where audio is none of these or too short for a frame, or where a layer
    does not exist, TypeError where it is no integer. Compiled are a few rounded lengths only.

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
        self._max_samples = round(max_seconds * SAMPLE_RATE)
        self._forwards: dict[tuple[str, tuple[int, ...]], Forward] = {}

    def features(self, waveform: Any, layer: int | Sequence[int] = 6, **options: Any) -> np.ndarray:
        """The layer's features: feed-forward output before the residual, float32 [(n, B,) T, D]."""
        return self._ask("features", waveform, layer, **options)

    def codebooks(
        self, waveform: Any, layer: int | Sequence[int] | None = None, **options: Any
    ) -> np.ndarray:
        """Probabilities of the layer's codes, float32 [(n, B,) T, V]; of all K layers if None."""
        layer = self.config.codebook_layers if layer is None else layer
        return self._ask("codebooks", waveform, layer, **options)

    def units(self, waveform: Any, layer: int | Sequence[int] = 6, **options: Any) -> np.ndarray:
        """The layer's most probable codes, int32 [(n, B,) T]."""
        return self._ask("units", waveform, layer, **options)

    def num_frames(self, num_samples: Any) -> Any:
        """Frames of so many samples (int or integer array)."""
        return self.config.framing.num_frames(num_samples)

    def forward(self, kind: str, layers: tuple[int, ...]) -> Forward:
        """The jitted function for these layers, made once; see `forward.make_forward`."""
        if (kind, layers) not in self._forwards:
            self._forwards[kind, layers] = make_forward(self.config, self._dtype, {kind: layers})
        return self._forwards[kind, layers]

    def stream(
        self, kind: str, layers: tuple[int, ...], utterances: Iterable[Utterance], **options: Any
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Outputs [n, T, ...] of many standardised utterances; see `stream`."""
        forward = self.forward(kind, layers)
        options = {"max_samples": self._max_samples} | options
        outputs = stream(forward, self.params, self.config.framing, utterances, **options)
        return ((key, found[kind]) for key, found in outputs)

    def _ask(
        self,
        kind: str,
        waveform: Any,
        layer: int | Sequence[int],
        *,
        lengths: Any = None,
        sample_rate: int = SAMPLE_RATE,
        standardised: bool = False,
    ) -> np.ndarray:
        if sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"sample_rate = {sample_rate}: allowed is {SAMPLE_RATE}; resample the audio first, "
                "files with `python -m spidr_jax.data.manifest prepare`"
            )
        one_layer = np.ndim(layer) == 0
        layers = tuple(map(operator.index, np.atleast_1d(layer)))
        rows = _utterances(waveform, lengths)
        for row in rows:
            if self.num_frames(len(row)) < 1:
                shape = np.shape(waveform)
                raise ValueError(
                    f"waveform: an utterance of {len(row)} samples gives no frame, of shape {shape}"
                    "; allowed is [S], mono, or a batch [B, S], not [samples, channels]"
                )
        if not standardised:
            rows = [audio.standardised(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        # one batch a length, and rows rounded to a power of two: few shapes are compiled
        budget = 2 ** math.ceil(math.log2(len(rows))) * round_up(
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


def _utterances(waveform: Any, lengths: Any) -> list[np.ndarray]:
    """The utterances of an argument, each float32 [S]."""
    array = np.asarray(waveform)
    if array.dtype == np.int16:
        array = array / np.float32(32_768)
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise ValueError("waveform: allowed is int16, or finite floating point in [-1, 1]")
    if array.ndim not in (1, 2):
        raise ValueError(f"waveform: shape {array.shape}; allowed is [S], mono, or a batch [B, S]")
    rows = array.astype(np.float32).reshape(-1, array.shape[-1])
    if lengths is None:
        return list(rows)
    valid = np.asarray(lengths)
    if valid.shape != (len(rows),) or valid.min() < 0 or valid.max() > rows.shape[1]:
        allowed = f"one integer from 0 to {rows.shape[1]} for each of {len(rows)} rows"
        raise ValueError(f"lengths = {lengths}: allowed is {allowed}")
    return [row[:length] for row, length in zip(rows, valid, strict=True)]
