"""Dropout whose masks are hashed from where an element is, so that none is stored.

A mask depends on its row's seeds and the place in the row alone: it is the same on any number of
devices, and in the backward pass it is computed again. B rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spidr_jax.ops import platform


def keep_mask(seeds: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Draw which elements stay, each with probability 1 - rate, independently.

    Args:
        seeds: uint32 [B, 2].
        shape: (B, ...), of at most 2^32 elements a row.
        rate: dropout probability, 0 to below 1.

    Returns:
        bool of that shape.
    """
    index = jnp.zeros((1, *shape[1:]), jnp.uint32)
    for axis in range(1, len(shape)):
        stride = math.prod(shape[axis + 1 :])
        index += lax.broadcasted_iota(jnp.uint32, index.shape, axis) * jnp.uint32(stride)
    first, second = (seeds[:, i].reshape(-1, *[1] * (len(shape) - 1)) for i in range(2))
    return keep_mask_at(index, first, second, rate)


def keep_mask_at(index: jax.Array, first: jax.Array, second: jax.Array, rate: float) -> jax.Array:
    """Whether the elements of a row at these places stay; all are uint32.

    The second seed multiplies, as rows whose first seeds are near share parts of the rest.
    """
    return mix(index + first) * (second | 1) >= _threshold(rate)


def mix(x: Any) -> Any:
    """ "lowbias32" (C. Wellons, hash-prospector) of numbers uint32, in JAX or numpy."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)


def _threshold(rate: float) -> jax.Array:
    return jnp.uint32(round(rate * 2**32))


def attention_keep_mask(seeds: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """`keep_mask` for attention's weights: shape is (B, H, T, T)."""
    queries, keys = pair_hashes(seeds, *shape[1:3])
    return keep_pairs(queries[..., None], keys[:, None, None], rate)


def pair_hashes(seeds: jax.Array, heads: int, frames: int) -> tuple[jax.Array, jax.Array]:
    """Hash the seeds to odd numbers uint32 of the queries [B, H, T] and of the keys [B, T]."""
    index = jnp.arange((heads + 1) * frames, dtype=jnp.uint32)
    hashed = mix(mix(index + seeds[:, :1]) + seeds[:, 1:]) | 1
    hashed = hashed.reshape(-1, heads + 1, frames)
    return hashed[:, :-1], hashed[:, -1]


def keep_pairs(query: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Whether the weights of queries at keys stay, from their `pair_hashes`.

    They are products modulo 2^32. For whole numbers a at some places, sum(a query key) averages
    out over the odd numbers that queries can have unless, for each query, its sum(a key) is 0
    modulo 2^31: of two odd keys with odd a that has a probability of 2^-30. So any few places are
    all but independent; single pairs of rows among billions are not.
    """
    return query * key >= _threshold(rate)


def apply_mask(
    x: jax.Array, seeds: jax.Array | None, rate: float, mask: Callable[..., jax.Array] = keep_mask
) -> jax.Array:
    """Zero what a mask does not keep, `keep_mask` or another; without seeds change nothing."""
    return x if seeds is None or rate == 0 else jnp.where(mask(seeds, x.shape, rate), x, 0)


def apply_dropout(
    x: jax.Array, seeds: jax.Array | None, rate: float, mask: Callable[..., jax.Array] = keep_mask
) -> jax.Array:
    """`apply_mask`, and scale the rest by 1 / (1 - rate)."""
    if seeds is None or rate == 0:
        return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # 0.9 in bfloat16 is 0.898
    return apply_mask((wide / (1 - rate)).astype(x.dtype), seeds, rate, mask)


def recompute(x: Any) -> Any:
    """Have XLA compute what follows from arrays x again, if it has computed it before.

    It would keep it in memory, which on a CPU, where this does nothing, costs less.
    """
    return x if platform.kind() == "cpu" else lax.optimization_barrier(x)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """`apply_dropout` whose backward pass does not read a mask but computes it."""
    return apply_dropout(x, seeds, rate)


dropout.defvjp(
    lambda x, seeds, rate: (apply_dropout(x, seeds, rate), seeds),
    lambda rate, seeds, g: (apply_dropout(g, recompute(seeds), rate), None),
)
