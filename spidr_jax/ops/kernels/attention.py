"""Attention with dropout in kernels of our own, for GPUs: no [T, T] array reaches their memory.

The algorithm is FlashAttention-2's (arXiv 2307.08691). Dropout's masks are those of
`dropout.attention_keep_mask`, computed again wherever they are used. The kernels read queries, keys
and values where their projection has put them, and put the gradients there, so that nothing is
transposed.

B batch, T frames, H heads, d width of a head.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops import reference
from spidr_jax.ops.dropout import keep_pairs, pair_hashes
from spidr_jax.ops.kernels.ptx_math import exp2, fma
from spidr_jax.ops.kernels.self_test import largest_error
from spidr_jax.ops.partition import partition_batch

Q, K, V = 0, 1, 2
BLOCK = 64  # queries or keys: that a program has, and that it takes at a time
Saved = tuple[jax.Array, ...]

_COMPILER = triton.CompilerParams(num_warps=4, num_stages=3)
_BITS = math.log2(math.e)  # exp(x) is exp2 of _BITS x, which is one instruction
_LOWEST = -(2.0**120)  # a row without frames gets some numbers, not NaN: its products are exact


def attention(
    qkv: jax.Array,
    frame_mask: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
    interpret: bool = False,
) -> jax.Array:
    """`ops.attention.attention`, for d a power of two from 16 on.

    `interpret` has JAX compute the kernels step by step, on any device, for tests.
    """
    rows, frames = qkv.shape[:2]
    lengths = jnp.full(rows, frames) if frame_mask is None else frame_mask.sum(axis=1)
    seeds = jnp.zeros((rows, 2), jnp.uint32) if seeds is None else seeds
    return _attention(qkv, lengths.astype(jnp.int32), seeds, rate, interpret)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(
    qkv: jax.Array, lengths: jax.Array, seeds: jax.Array, rate: float, interpret: bool
) -> jax.Array:
    return _calls(rate, interpret)[0](qkv, lengths, seeds)[0]


def _forward(
    qkv: jax.Array, lengths: jax.Array, seeds: jax.Array, rate: float, interpret: bool
) -> tuple[jax.Array, Saved]:
    output, wide, log_sums = _calls(rate, interpret)[1](qkv, lengths, seeds)
    return output, (qkv, lengths, seeds, wide, log_sums)


def _backward(
    rate: float, interpret: bool, saved: Saved, g: jax.Array
) -> tuple[jax.Array | None, ...]:
    qkv, lengths, seeds, wide, log_sums = saved
    sums = (g.astype(jnp.float32) * wide).sum(axis=-1).swapaxes(1, 2)  # [B, H, T]
    sums *= 1 - rate
    gradient = _calls(rate, interpret)[2](qkv, lengths, seeds, g, log_sums, sums)
    return gradient, None, None


_attention.defvjp(_forward, _backward)


def self_test(dtype: Any, width: int, interpret: bool = False) -> float:
    """Run the kernels on noise; the largest relative error of value and gradients.

    Args:
        dtype: type of qkv.
        width: width of a head.
        interpret: as for `attention`.
    """
    draw = np.random.default_rng(0)
    frame_mask = np.arange(200) < np.array([[200], [77]])
    seeds = draw.integers(2**32, size=(2, 2), dtype=np.uint32)
    qkv = draw.standard_normal((2, 200, 3, 2, width)).astype(dtype)
    g = draw.standard_normal((2, 200, 2, width)).astype(dtype)

    def run(attend: Callable[..., jax.Array], qkv: jax.Array, g: jax.Array) -> list[jax.Array]:
        value, back = jax.vjp(lambda qkv: attend(qkv, frame_mask, seeds, 0.1), qkv)
        return [value, *back(g), attend(qkv, frame_mask, None, 0.0)]

    ours = partial(attention, interpret=interpret)
    return largest_error(
        lambda *arrays: (run(ours, *arrays), run(reference.attention, *arrays)), qkv, g
    )


@cache
def _calls(rate: float, interpret: bool) -> tuple[Callable[..., Any], ...]:
    """The kernels, for each device's rows: forward, forward for gradients, backward."""

    def split(call: Callable[..., Any], arrays: str, **more: Any) -> Callable[..., Any]:
        options = {"rate": rate, "interpret": interpret, **more}
        return partition_batch(lambda *each: call(*each, **options), f"b t c h d, b, b s{arrays}")

    return (
        split(_call_forward, " -> b u e f", saves=False),
        split(_call_forward, " -> b u e f, b v i j, b k l", saves=True),
        split(_call_backward, ", b u e f, b k l, b m n -> b v g i j"),
    )


def _call_forward(
    qkv: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
    *,
    saves: bool,
    rate: float,
    interpret: bool,
) -> list[jax.Array]:
    """The output [B, T, H, d] in the type of qkv; for gradients float32, too, and log-sum-exps.

    These, [B, H, T], are binary logarithms of the sum of a query's exponentiated scores.
    """
    rows, frames, _, heads, width = qkv.shape
    output = jax.ShapeDtypeStruct((rows, frames, heads, width), qkv.dtype)
    log_sums = jax.ShapeDtypeStruct((rows, heads, frames), jnp.float32)
    results = 3 if saves else 1
    return pl.pallas_call(
        partial(_forward_kernel, frames=frames, rate=rate, interpret=interpret),
        grid=(rows, heads, pl.cdiv(frames, BLOCK)),
        in_specs=[
            _spec_qkv(frames, width),
            _spec_length(),
            _spec_scalars(frames),
            _spec_keys(frames),
        ],
        out_specs=[*[_spec_output(frames, width)] * 2, _spec_scalars(frames)][:results],
        out_shape=[output, output.update(dtype=jnp.float32), log_sums][:results],
        compiler_params=_COMPILER,
        interpret=interpret,
        name="attention_forward",
    )(qkv, lengths, *pair_hashes(seeds, heads, frames))


def _call_backward(
    qkv: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
    g: jax.Array,
    log_sums: jax.Array,
    sums: jax.Array,
    *,
    rate: float,
    interpret: bool,
) -> jax.Array:
    """The gradient [B, T, 3, H, d] of qkv.

    Sums [B, H, T] are of output times its gradient, times 1 - rate.
    """
    rows, frames, _, heads, width = qkv.shape
    return pl.pallas_call(
        partial(_backward_kernel, frames=frames, rate=rate, interpret=interpret),
        grid=(rows, heads, pl.cdiv(frames, BLOCK)),
        in_specs=[
            _spec_qkv(frames, width),
            _spec_length(),
            _spec_scalars(frames),
            _spec_keys(frames),
            _spec_output(frames, width),
            *[_spec_scalars(frames)] * 2,
        ],
        out_specs=_spec_qkv(frames, width),
        out_shape=jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        compiler_params=_COMPILER,
        interpret=interpret,
        name="attention_backward",
    )(qkv, lengths, *pair_hashes(seeds, heads, frames), g, log_sums, sums)


# What a program (row, head, block) is given: all frames of its row and head.


def _spec_qkv(frames: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, frames, 3, None, width), lambda b, h, i: (b, 0, 0, h, 0))


def _spec_output(frames: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, frames, None, width), lambda b, h, i: (b, 0, h, 0))


def _spec_scalars(frames: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, frames), lambda b, h, i: (b, h, 0))


def _spec_length() -> pl.BlockSpec:
    return pl.BlockSpec((None,), lambda b, h, i: (b,))


def _spec_keys(frames: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, frames), lambda b, h, i: (b, 0))


def _forward_kernel(
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


def _backward_kernel(
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
