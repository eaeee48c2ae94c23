"""Small functions that every layer uses: GELU, norms, an initialiser."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

EPSILON = 1e-5


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, through erf: XLA evaluates the erfc of `jax.nn.gelu` slowly."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def instance_norm(x: jax.Array, frame_mask: jax.Array | None = None) -> jax.Array:
    """Standardise each channel of each utterance over its valid frames, in float32.

    Args:
        x: [B, T, C].
        frame_mask: bool [B, T], true at valid frames; None if all are.

    Returns:
        float32 [B, T, C], with biased variance and eps 1e-5.
    """
    x = x.astype(jnp.float32)
    where = None if frame_mask is None else frame_mask[..., None]
    mean = x.mean(axis=1, keepdims=True, where=where)
    centred = x - mean
    variance = jnp.square(centred).mean(axis=1, keepdims=True, where=where)
    return centred * lax.rsqrt(variance + EPSILON)


def uniform_init(bound: float) -> nn.initializers.Initializer:
    """Initialiser that draws from the uniform distribution on [-bound, bound)."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_norm(dtype: Any, name: str | None = None, affine: bool = True) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=EPSILON,
        dtype=dtype,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        name=name,
    )
