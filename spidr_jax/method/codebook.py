"""Codebooks clustered online from the teacher's layers, as pure transforms of their state.

N frames, D model width, K codebooks, V codes per codebook.
Source: DinoSR (arXiv 2305.10005), section 3.
"""

import dataclasses
from collections.abc import Callable
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


class CodeStatistics(NamedTuple):
    """Statistics of a batch for `update`, by code; those of a batch's parts add up."""

    sums: Array  # float32 [K, V, D], of the frames assigned to it
    counts: Array  # float32 [K, V], of these frames
    candidates: Array  # float32 [K, V, D], one frame drawn by lot; zero once there are none left


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """Assignment and update of the codebooks.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    decay: float = 0.9  # of sums and counts a step; at 1 nothing moves
    assignment: str = "nearest"  # name in ASSIGNMENTS: which code a frame gets
    update_rule: str = "moving_average"  # name in UPDATES: how a step changes the codes

    def __post_init__(self) -> None:
        checks = (
            ("decay", 0 <= self.decay <= 1, "0 to 1"),
            ("assignment", self.assignment in ASSIGNMENTS, ", ".join(ASSIGNMENTS)),
            ("update_rule", self.update_rule in UPDATES, ", ".join(UPDATES)),
        )
        check_fields(self, checks)


def least_perplexity(codebook_size: int) -> float:
    """Perplexity below which a codebook has collapsed; at first 0.4 of its codes are in use."""
    return max(2.0, 0.1 * codebook_size)


def init(key: jax.Array, num_codebooks: int, codebook_size: int, width: int) -> CodebookState:
    """Draw standard normal codes, each coordinate standardised over the V codes; counts are 1."""
    sums = jax.random.normal(key, (num_codebooks, codebook_size, width))
    sums = (sums - sums.mean(axis=1, keepdims=True)) / sums.std(axis=1, keepdims=True)
    return CodebookState(sums, jnp.ones((num_codebooks, codebook_size)))


def distances(state: CodebookState, targets: jax.Array) -> jax.Array:
    """Squared Euclidean distances [K, N, V] of targets and codes, less |target|^2.

    Products are in full float32 on every backend.
    """
    codes = state.sums / state.counts[..., None]  # [K, V, D]
    products = jnp.einsum("knd,kvd->knv", targets, codes, precision=lax.Precision.HIGHEST)
    return jnp.square(codes).sum(axis=-1)[:, None] - 2 * products


def assign(
    config: CodebookConfig, state: CodebookState, targets: jax.Array, mask: jax.Array
) -> jax.Array:
    """Assign frames to the codes of each codebook.

    Args:
        config: names the assignment.
        state: the codebooks.
        targets: float32 [K, N, D], all frames of the batch, or of its part where
            `memory.accumulate` cuts it.
        mask: bool [N], the frames that count.

    Returns:
        float32 [K, N, V], distributions over the codes, all zero for frames that do not count.
    """
    assigned = ASSIGNMENTS[config.assignment](config, state, targets, mask)
    return assigned * mask[:, None]


def _nearest(
    config: CodebookConfig, state: CodebookState, targets: jax.Array, mask: jax.Array
) -> jax.Array:
    return jax.nn.one_hot(jnp.argmin(distances(state, targets), axis=-1), state.sums.shape[1])


def statistics(targets: jax.Array, assignments: jax.Array, lots: jax.Array) -> CodeStatistics:
    """Compute the statistics of a batch by code.

    Args:
        targets: float32 [K, N, D].
        assignments: distributions over the codes from `assign`.
        lots: int [N], of which code's candidate a frame is; V or more for none.
    """
    drawn = jax.nn.one_hot(lots, assignments.shape[-1])
    return CodeStatistics(
        jnp.einsum("knv,knd->kvd", assignments, targets, precision=lax.Precision.HIGHEST),
        assignments.sum(axis=1),
        jnp.einsum("nv,knd->kvd", drawn, targets, precision=lax.Precision.HIGHEST),
    )


def draw_lots(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Number the masked frames of bool [B, T] in random order, before the others: int [B, T]."""
    order = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0).ravel()
    return jnp.argsort(jnp.argsort(order)).reshape(mask.shape)


def update(
    config: CodebookConfig, state: CodebookState, batch: CodeStatistics, key: jax.Array
) -> CodebookState:
    """Move the codes after a batch.

    Args:
        config: names the update; at a decay of 1 nothing moves.
        state: the codebooks.
        batch: the `statistics` of the batch's frames. What an update does not read costs nothing.
        key: random key of the step.
    """
    return state if config.decay == 1 else UPDATES[config.update_rule](config, state, batch, key)


def _moving_average(
    config: CodebookConfig, state: CodebookState, batch: CodeStatistics, key: jax.Array
) -> CodebookState:
    """Move each code that got frames towards their mean; codes without frames stay."""
    used, decay = batch.counts > 0, config.decay
    return CodebookState(
        jnp.where(used[..., None], decay * state.sums + (1 - decay) * batch.sums, state.sums),
        jnp.where(used, decay * state.counts + (1 - decay) * batch.counts, state.counts),
    )


# (config, codebooks, targets [K, N, D], mask [N]) -> distributions over the codes [K, N, V]
ASSIGNMENTS: dict[str, Callable[..., jax.Array]] = {"nearest": _nearest}
# (config, codebooks, batch, key) -> codebooks
UPDATES: dict[str, Callable[..., CodebookState]] = {"moving_average": _moving_average}
