"""Codebooks clustered online from the teacher's layers, as pure transforms of their state.

N frames, D model width, K codebooks, V codes per codebook.
Source: DinoSR (arXiv 2305.10005), section 3; spec sections 2 and 3.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spidr_jax.model.checks import check_fields

Array = jax.Array | np.ndarray


class CodebookState(NamedTuple):
    """Decayed sums and counts of the frames assigned to each code; a code is their quotient."""

    sums: Array  # float32 [K, V, D]
    counts: Array  # float32 [K, V]


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """How codebooks follow the teacher.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    decay: float = 0.9  # of sums and counts a step

    def __post_init__(self) -> None:
        check_fields(self, [("decay", 0 <= self.decay < math.inf, "a number from 0")])


def init(key: jax.Array, num_codebooks: int, codebook_size: int, width: int) -> CodebookState:
    """Draw standard normal codes, each coordinate standardised over the V codes; counts are 1."""
    sums = jax.random.normal(key, (num_codebooks, codebook_size, width))
    sums = (sums - sums.mean(axis=1, keepdims=True)) / sums.std(axis=1, keepdims=True)
    return CodebookState(sums, jnp.ones((num_codebooks, codebook_size)))


def assign(state: CodebookState, targets: jax.Array) -> jax.Array:
    """Find the nearest code, in Euclidean distance, of each frame in each codebook.

    Args:
        state: the codebooks.
        targets: float32 [K, N, D].

    Returns:
        int32 [K, N]. Distances are in full float32 on every backend.
    """
    codes = state.sums / state.counts[..., None]  # [K, V, D]
    products = jnp.einsum("knd,kvd->knv", targets, codes, precision=lax.Precision.HIGHEST)
    distances = jnp.square(codes).sum(axis=-1)[:, None] - 2 * products  # less |target|^2
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def totals(targets: jax.Array, assignments: jax.Array) -> CodebookState:
    """Sum and count the frames of each code; frames of a batch's parts may be added up.

    Args:
        targets: float32 [K, N, D].
        assignments: float32 [K, N, V], one-hot codes, all zero for frames that do not count.
    """
    sums = jnp.einsum("knv,knd->kvd", assignments, targets, precision=lax.Precision.HIGHEST)
    return CodebookState(sums, assignments.sum(axis=1))


def update(state: CodebookState, batch: CodebookState, decay: float) -> CodebookState:
    """Move each code that got frames towards their mean; codes without frames stay.

    Args:
        state: the codebooks.
        batch: the `totals` of the batch's frames.
        decay: weight of the old sums and counts; 1 or more means no update.
    """
    if decay >= 1:
        return state
    used = batch.counts > 0
    return CodebookState(
        jnp.where(used[..., None], decay * state.sums + (1 - decay) * batch.sums, state.sums),
        jnp.where(used, decay * state.counts + (1 - decay) * batch.counts, state.counts),
    )
