"""The training step of a smallest model, what it is given, and comparison of what it gives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.step import StepConfig, TrainState, make_train_step
from spidr_jax.model.config import ModelConfig
from spidr_jax.train.optim import OptimizerConfig

MODEL = ModelConfig(**tiny.SMALLEST)
CONFIG = StepConfig(
    model=MODEL,
    masking=MaskingConfig(group_rows=2),
    optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0),
    dtype=jnp.float32,
)
NO_DROPOUT = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(MODEL, encoder_dropout=0.0, encoder_attention_dropout=0.0),
)
SAMPLES = 500
FRAMES = MODEL.framing.num_frames(SAMPLES)
KEY = jax.random.key(7)
Batch = dict[str, Any]
Metrics = dict[str, np.ndarray]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState, Batch, jax.Array], Metrics]


def make_batch(seed: int = 0, rows: int = 4) -> dict[str, jax.Array]:
    """Noise, [rows, SAMPLES]."""
    waveforms = np.random.default_rng(seed).standard_normal((rows, SAMPLES))
    return {"waveforms": jnp.asarray(waveforms, jnp.float32)}


def make_mask(seed: int = 0, rows: int = 4, frames: int = FRAMES) -> np.ndarray:
    """Half of the frames of each row, drawn."""
    draw = np.random.default_rng(seed)
    order = np.stack([draw.permutation(frames) for _ in range(rows)])
    return order < frames // 2


def compiled(config: StepConfig, frozen: bool = False) -> Step:
    """The jitted step, with metrics in numpy."""
    step = jax.jit(make_train_step(config, frozen))

    def run(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch, key)
        return after, jax.device_get(metrics)

    return run


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, NaN included."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y, equal_nan=True)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
