"""Discrete units from a trained student.

B batch, S samples, T frames, K codebooks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax import model
from spidr_jax.model_config import ModelConfig, num_frames

ROUNDING = 80_000  # padded lengths are multiples of it, so that few shapes are compiled
ROWS = 8

UnitsFn = Callable[[model.Params, np.ndarray, np.ndarray], jax.Array]


def make_units_fn(config: ModelConfig, dtype: Any) -> UnitsFn:
    """Make the jitted function (params, waveforms [B, S], lengths [B]) -> units int32 [K, B, T].

    A unit is the most probable code of the student's prediction head on the unmasked audio.
    """
    nets = model.build(config, dtype)

    def units(params: model.Params, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        feats, frame_mask = model.extract(nets, params, waveforms, lengths)
        outputs = model.encode(nets, params["student"], feats, frame_mask)
        return jnp.argmax(model.predict(nets, params, *outputs), axis=-1)

    return jax.jit(units)


def extract_units(
    units_fn: UnitsFn,
    params: model.Params,
    config: ModelConfig,
    utterances: Iterable[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, np.ndarray]]:
    """Units int32 [K, T] of each utterance.

    Args:
        units_fn: of `make_units_fn`.
        params: the student side's parameters.
        config: the architecture.
        utterances: file ids with standardised waveforms [S], best sorted by length.
    """
    batch: list[tuple[str, np.ndarray]] = []
    for utterance in utterances:
        batch.append(utterance)
        if len(batch) == ROWS:
            yield from _run(units_fn, params, config, batch)
            batch = []
    if batch:
        yield from _run(units_fn, params, config, batch)


def _run(
    units_fn: UnitsFn,
    params: model.Params,
    config: ModelConfig,
    batch: list[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, np.ndarray]]:
    longest = max(len(waveform) for _, waveform in batch)
    padded = np.zeros((ROWS, -(-longest // ROUNDING) * ROUNDING), np.float32)
    lengths = np.full(ROWS, longest, np.int32)
    for row, (_, waveform) in enumerate(batch):
        padded[row, : len(waveform)] = waveform
        lengths[row] = len(waveform)
    units = np.asarray(units_fn(params, padded, lengths))
    frames = num_frames(lengths, config.extractor_conv_layer_config)
    for row, (name, _) in enumerate(batch):
        yield name, units[:, row, : frames[row]]
