"""Attention with dropout in kernels of our own, for GPUs: no [T, T] array reaches their memory.

The algorithm is FlashAttention-2's (arXiv 2307.08691). Dropout's masks are those of
`dropout.attention_keep_mask`, computed again wherever they are used. The kernels read queries, keys
and values where their projection has put them, and put the gradients there, so that nothing is
transposed.

B batch, T frames, H heads, d width of a head.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops import reference
from spidr_jax.ops.dropout import pair_hashes
from spidr_jax.ops.kernels.attention_blocks import BLOCK, backward_kernel, forward_kernel
from spidr_jax.ops.kernels.self_test import largest_error
from spidr_jax.ops.partition import partition_batch

Saved = tuple[jax.Array, ...]

# On an H100, backward, 2 stages took 15 % longer, 8 warps 2.3 times as long. Forward 4 or 8 warps
# are within 5 %.
_COMPILER = triton.CompilerParams(num_warps=4, num_stages=3)


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
    """The largest relative error of value and gradients on noise, for heads of a width."""
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
    of_qkv, of_length, of_scalars, of_keys, of_output = _specs(frames, width)
    return pl.pallas_call(
        partial(forward_kernel, frames=frames, rate=rate, interpret=interpret),
        grid=(rows, heads, pl.cdiv(frames, BLOCK)),
        in_specs=[of_qkv, of_length, of_scalars, of_keys],
        out_specs=[of_output, of_output, of_scalars][:results],
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
    of_qkv, of_length, of_scalars, of_keys, of_output = _specs(frames, width)
    return pl.pallas_call(
        partial(backward_kernel, frames=frames, rate=rate, interpret=interpret),
        grid=(rows, heads, pl.cdiv(frames, BLOCK)),
        in_specs=[of_qkv, of_length, of_scalars, of_keys, of_output, of_scalars, of_scalars],
        out_specs=of_qkv,
        out_shape=jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        compiler_params=_COMPILER,
        interpret=interpret,
        name="attention_backward",
    )(qkv, lengths, *pair_hashes(seeds, heads, frames), g, log_sums, sums)


def _specs(frames: int, width: int) -> tuple[pl.BlockSpec, ...]:
    """What a program (row, head, block) is given: all frames of its row and head."""
    return (
        pl.BlockSpec((None, frames, 3, None, width), lambda b, h, i: (b, 0, 0, h, 0)),  # of qkv
        pl.BlockSpec((None,), lambda b, h, i: (b,)),  # of lengths
        pl.BlockSpec((None, None, frames), lambda b, h, i: (b, h, 0)),  # of a number a query
        pl.BlockSpec((None, frames), lambda b, h, i: (b, 0)),  # of the keys' hashes
        pl.BlockSpec((None, frames, None, width), lambda b, h, i: (b, 0, h, 0)),  # of the output
    )
