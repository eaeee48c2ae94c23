"""What a program of attention's kernels computes: a block of frames of a row and head.

T frames, d width of a head.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops.dropout import keep_pairs
from spidr_jax.ops.kernels.ptx_math import exp2, fma

Q, K, V = 0, 1, 2
# Queries or keys that a program has, and that it takes at a time. On an H100, backward, 32 or 128
# took 30 to 45 % longer; forward 128 queries are as fast, 128 keys take half as long again.
BLOCK = 64

_BITS = math.log2(math.e)  # exp(x) is exp2 of _BITS x, which is one instruction
_LOWEST = -(2.0**120)  # a row without frames gets some numbers, not NaN: its products are exact


def forward_kernel(
    qkv: Any, length: Any, query_hashes: Any, key_hashes: Any, output: Any, *saved: Any,
    frames: int, rate: float, interpret: bool,
) -> None:  # fmt: skip
    start = pl.program_id(2) * BLOCK
    q, is_frame = _load(qkv, start, frames, Q)
    own_hashes = _load_scalars(query_hashes, start, frames)
    factor = _scale(q) * _BITS

    def attend(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peaks, totals, sums = carry
        k, v = (_load(qkv, i * BLOCK, frames, part)[0] for part in (K, V))
        keys = i * BLOCK + jnp.arange(BLOCK)
        scores = triton.dot(q, k, trans_b=True)
        scores = jnp.where((keys < length[...])[None], scores, _LOWEST)
        higher = jnp.maximum(peaks, scores.max(axis=1))
        powers = exp2(scores, factor, (higher * factor)[:, None], interpret)
        shrink = jnp.exp2((peaks - higher) * factor)
        totals = totals * shrink + powers.sum(axis=1)
        key_hashes_here = _load_scalars(key_hashes, i * BLOCK, frames)
        powers = _apply_mask(powers, own_hashes[:, None], key_hashes_here[None], rate)
        sums = sums * shrink[:, None] + triton.dot(powers.astype(v.dtype), v)
        return higher, totals, sums

    peaks, totals, sums = jax.lax.fori_loop(
        0,
        pl.cdiv(frames, BLOCK),
        attend,
        (jnp.full(BLOCK, _LOWEST), jnp.zeros(BLOCK), jnp.zeros(q.shape, jnp.float32)),
    )
    sums /= (totals * (1 - rate))[:, None]
    place = pl.ds(start, BLOCK)
    triton.store(output.at[place], sums.astype(output.dtype), mask=is_frame[:, None])
    if saved:
        wide, log_sums = saved
        triton.store(wide.at[place], sums, mask=is_frame[:, None])
        triton.store(log_sums.at[place], peaks * factor + jnp.log2(totals), mask=is_frame)


def backward_kernel(
    qkv: Any, length: Any, query_hashes: Any, key_hashes: Any, g: Any, log_sums: Any, sums: Any,
    gradient: Any, *, frames: int, rate: float, interpret: bool,
) -> None:  # fmt: skip
    """A program has some frames, first as keys of all queries, then as queries of all keys."""
    own = pl.program_id(2) * BLOCK
    blocks = pl.cdiv(frames, BLOCK)
    (q, is_frame), (k, _), (v, _) = (_load(qkv, own, frames, p) for p in (Q, K, V))

    def is_key(first: Any) -> jax.Array:
        return first + jnp.arange(BLOCK) < length[...]

    def weights(
        q: jax.Array, k: jax.Array, g: jax.Array, v: jax.Array, first_query: Any, first_key: Any,
        keys_first: bool,
    ) -> tuple[jax.Array, jax.Array]:  # fmt: skip
        """The values' weights and the scores' gradients, [keys, queries] or the other way round.

        Both are 1 - rate times what they should be: less work than a division of each.
        """
        scores = triton.dot(k, q, trans_b=True) if keys_first else triton.dot(q, k, trans_b=True)
        slopes = triton.dot(v, g, trans_b=True) if keys_first else triton.dot(g, v, trans_b=True)
        along = (lambda x: x[None]) if keys_first else (lambda x: x[:, None])
        across = (lambda x: x[:, None]) if keys_first else (lambda x: x[None])
        log_sums_here = along(_load_scalars(log_sums, first_query, frames, jnp.inf))
        sums_here = along(_load_scalars(sums, first_query, frames))
        hashes_here = (
            along(_load_scalars(query_hashes, first_query, frames)),
            across(_load_scalars(key_hashes, first_key, frames)),
        )
        powers = exp2(scores, _scale(q) * _BITS, log_sums_here, interpret)
        if not keys_first:  # else they do not meet
            powers = jnp.where(is_key(first_key)[None], powers, 0)
        dropped = _apply_mask(powers, *hashes_here, rate)
        slopes = fma(dropped, slopes, powers * -sums_here, interpret)
        return dropped.astype(v.dtype), slopes.astype(q.dtype)

    def take_queries(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> Any:
        k_gradient, v_gradient = carry
        q, _ = _load(qkv, i * BLOCK, frames, Q)
        g_here, _ = _load(g, i * BLOCK, frames)
        dropped, slopes = weights(q, k, g_here, v, i * BLOCK, own, True)
        return k_gradient + triton.dot(slopes, q), v_gradient + triton.dot(dropped, g_here)

    def take_keys(i: jax.Array, q_gradient: jax.Array) -> jax.Array:
        k, _ = _load(qkv, i * BLOCK, frames, K)
        v, _ = _load(qkv, i * BLOCK, frames, V)
        _, slopes = weights(q, k, own_g, v, own, i * BLOCK, False)
        return q_gradient + triton.dot(slopes, k)

    def put(part: int, value: jax.Array) -> None:
        place = gradient.at[pl.ds(own, BLOCK), jnp.int32(part)]
        triton.store(place, value.astype(gradient.dtype), mask=is_frame[:, None])

    zeros = jnp.zeros(q.shape, jnp.float32)
    k_gradient, v_gradient = jax.lax.fori_loop(0, blocks, take_queries, (zeros, zeros))
    own_keys = is_key(own)[:, None]
    put(K, jnp.where(own_keys, k_gradient * (_scale(q) / (1 - rate)), 0))
    put(V, jnp.where(own_keys, v_gradient * (1 / (1 - rate)), 0))
    own_g, _ = _load(g, own, frames)
    put(Q, jax.lax.fori_loop(0, blocks, take_keys, zeros) * (_scale(q) / (1 - rate)))


def _load(ref: Any, start: Any, frames: int, *part: int) -> tuple[jax.Array, jax.Array]:
    """A block of frames [BLOCK, d], zeros after the last, and which of them there are."""
    is_frame = start + jnp.arange(BLOCK) < frames
    place = ref.at[pl.ds(start, BLOCK), *map(jnp.int32, part)]  # JAX interprets no plain int
    return triton.load(place, mask=is_frame[:, None], other=0), is_frame


def _load_scalars(ref: Any, start: Any, frames: int, other: float = 0) -> jax.Array:
    """A block of frames' numbers [BLOCK], and another after the last."""
    is_frame = start + jnp.arange(BLOCK) < frames
    return triton.load(ref.at[pl.ds(start, BLOCK)], mask=is_frame, other=other)


def _scale(q: jax.Array) -> float:
    return float(q.shape[-1] ** -0.5)


def _apply_mask(x: jax.Array, query: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """`dropout.apply_mask` of weights of queries and keys with these hashes."""
    return jnp.where(keep_pairs(query, key, rate), x, 0) if rate else x
