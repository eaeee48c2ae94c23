"""Masked cross-entropy and the perplexities that show whether codebooks are in use.

N frames, K codebooks, V codes per codebook. Source: SpidR section 3; spec section 3.
"""

import jax
import jax.numpy as jnp


def masked_cross_entropy(log_probs: jax.Array, assignments: jax.Array) -> jax.Array:
    """Summed cross-entropy [K] of the frames that count; their number makes it the mean.

    Args:
        log_probs: float32 [K, N, V].
        assignments: float32 [K, N, V], one-hot codes, all zero for frames that do not count.
    """
    return -(assignments * log_probs).sum(axis=(1, 2))


def perplexity(probabilities: jax.Array) -> jax.Array:
    """Perplexity 2^H [...] of distributions [..., V], with H in bits from log2(p + 1e-8)."""
    return jnp.exp2(-(probabilities * jnp.log2(probabilities + 1e-8)).sum(axis=-1))
