"""Targets, loss, and the statistics that show whether codebooks are in use.

B batch, T frames, D model width, K codebooks, V codes per codebook, N = B T.
Source: SpidR (arXiv 2512.20308), section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spidr_jax.method import codebook
from spidr_jax.method.codebook import CodeStatistics
from spidr_jax.model.checks import check_fields
from spidr_jax.ops.norms import instance_norm

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Choice of the loss.

    Raises:
        ValueError: a value is not usable; the message names field, value and what is allowed.
    """

    name: str = "cross_entropy"  # in LOSSES

    def __post_init__(self) -> None:
        check_fields(self, [("name", self.name in LOSSES, ", ".join(LOSSES))])


class StepStatistics(NamedTuple):
    """Sums over masked frames, for metrics and codebooks; those of a batch's parts add up."""

    loss: jax.Array  # [K]
    predictions: jax.Array  # [K, V], probabilities
    codes: CodeStatistics


def make_targets(teacher_layers: list[jax.Array], frame_mask: jax.Array | None) -> jax.Array:
    """Standardise the teacher's K layers [B, T, D] over valid frames: float32 [K, N, D]."""
    return _frames(jnp.stack([instance_norm(x, frame_mask) for x in teacher_layers]))


def loss_and_statistics(
    config: LossConfig,
    logits: jax.Array,
    targets: jax.Array,
    assignments: jax.Array,
    mask: jax.Array,
    lots: jax.Array,
) -> StepStatistics:
    """Compare predictions with assignments.

    Args:
        config: names the loss.
        logits: float32 [K, B, T, V].
        targets: float32 [K, N, D].
        assignments: float32 [K, N, V], zero for frames that do not count.
        mask: bool [B, T], the frames that count.
        lots: random numbers of the frames from `codebook.draw_lots`, [B, T].
    """
    log_probs = _frames(jax.nn.log_softmax(logits))  # [K, N, V]
    return StepStatistics(
        LOSSES[config.name](config, log_probs, assignments),
        (jnp.exp(log_probs) * mask.reshape(-1, 1)).sum(axis=1),
        codebook.statistics(targets, assignments, lots.ravel()),
    )


def _cross_entropy(config: LossConfig, log_probs: jax.Array, assignments: jax.Array) -> jax.Array:
    return -(assignments * log_probs).sum(axis=(1, 2))


# (config, log probabilities [K, N, V], assignments [K, N, V], zero for frames that do not count)
# -> sums over the frames [K]
LOSSES: dict[str, Callable[..., jax.Array]] = {"cross_entropy": _cross_entropy}


def metrics(statistics: StepStatistics, masked_frames: jax.Array) -> Metrics:
    """Means over masked frames and codebooks, and [K] under names in `_per_codebook`."""
    usage = jnp.asarray(statistics.codes.counts)  # [K, V]
    per_codebook = {
        "loss": statistics.loss / masked_frames,
        "target_ppl": perplexity(usage / masked_frames),
        "pred_ppl": perplexity(statistics.predictions / masked_frames),
        "active_codes": (usage > 0).sum(axis=1).astype(jnp.float32),
    }
    means = {name: values.mean() for name, values in per_codebook.items()}
    return {f"{name}_per_codebook": values for name, values in per_codebook.items()} | means


def perplexity(probabilities: jax.Array) -> jax.Array:
    """Perplexity 2^H [...] of distributions [..., V], with H in bits from log2(p + 1e-8)."""
    return jnp.exp2(-(probabilities * jnp.log2(probabilities + 1e-8)).sum(axis=-1))


def _frames(x: jax.Array) -> jax.Array:
    """[K, B, T, D or V] -> [K, N, D or V]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
