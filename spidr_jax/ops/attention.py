"""Attention over whole utterances, with dropout: softmax(q k / sqrt(d)) v.

B batch, T frames, H heads, d width of a head.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.ops import dispatch as own_kernels
from spidr_jax.ops import platform as backend
from spidr_jax.ops.dropout import anew, drop, keep_weights, zero


def attention(
    qkv: jax.Array, frame_mask: jax.Array | None, seeds: jax.Array | None, rate: float
) -> jax.Array:
    """Attend from every frame to the valid ones.

    This is a kernel of ours where it runs; else, without dropout, cuDNN's flash attention.

    Args:
        qkv: queries, keys and values [B, T, 3, H, d].
        frame_mask: bool [B, T], true at an utterance's valid frames, which come first; None if
            all are.
        seeds: uint32 [B, 2] of the dropout of the weights; None for no dropout.
        rate: of that dropout.

    Returns:
        [B, T, H, d]; the softmax is float32.
    """
    rows, frames, _, heads, width = qkv.shape
    if rate == 0 or seeds is None:
        seeds, rate = None, 0.0
    dtype = qkv.dtype
    if own := own_kernels.load("attention", "attention", dtype, width, _attention):
        lengths = jnp.full(rows, frames) if frame_mask is None else frame_mask.sum(axis=1)
        seeds = jnp.zeros((rows, 2), jnp.uint32) if seeds is None else seeds
        return own.attention(qkv, lengths.astype(jnp.int32), seeds, rate)
    q, k, v = (qkv[:, :, i] for i in range(3))
    if seeds is None and flash_runs((frames, heads, width), dtype):
        return _flash(q, k, v, frame_mask)
    return _attention(q, k, v, frame_mask, seeds, rate)


def _flash(q: jax.Array, k: jax.Array, v: jax.Array, frame_mask: jax.Array | None) -> jax.Array:
    lengths = None if frame_mask is None else frame_mask.sum(axis=1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


@cache
def flash_runs(shape: tuple[int, int, int], dtype: Any) -> bool:
    """Whether cuDNN attends, forward and backward, on this machine at a shape (T, H, d)."""
    if not own_kernels.may_run(dtype) or backend.is_described():
        return False
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    mask = jax.ShapeDtypeStruct((1, shape[0]), jnp.bool)
    try:
        for frame_mask in (None, mask):
            total = lambda q, k, v, m: _flash(q, k, v, m).astype(jnp.float32).sum()  # noqa: E731
            jax.jit(jax.grad(total, (0, 1, 2))).lower(x, x, x, frame_mask).compile()
    except Exception as error:  # whatever it lacks: version, shape, device
        own_kernels.report("attention without cuDNN", error)
        return False
    return True


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    frame_mask: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
) -> jax.Array:
    return _forward(q, k, v, frame_mask, seeds, rate)[0]


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    frame_mask: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
) -> tuple[jax.Array, Any]:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5  # [B, H, T, T]
    if frame_mask is not None:
        scores = jnp.where(frame_mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    peaks = scores.max(axis=-1, keepdims=True)
    powers = jnp.exp(scores - peaks).astype(v.dtype)  # the softmax's numerators
    totals = powers.astype(jnp.float32).sum(axis=-1)  # [B, H, T]
    kept = zero(powers, seeds, rate, keep_weights)
    output = jnp.einsum("bhqk,bkhd->bqhd", kept, v, preferred_element_type=jnp.float32)
    output *= _shares(totals, seeds, rate)
    return output.astype(v.dtype), (q, k, v, powers, totals, output, seeds)


def _shares(totals: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """What makes numerators that are kept the weights, [B, T, H, 1]."""
    return 1 / (totals * (1 - rate if seeds is not None else 1)).swapaxes(1, 2)[..., None]


def _backward(rate: float, saved: Any, g: jax.Array) -> tuple[jax.Array | None, ...]:
    """As in flash attention, the softmax's row sums come from the output, not from [T, T].

    The output is kept in float32 for that: rounded, it would double the gradients' error.
    """
    q, k, v, powers, totals, output, seeds = saved
    seeds = anew(seeds)
    sums = (g.astype(jnp.float32) * output).sum(axis=-1).swapaxes(1, 2)  # [B, H, T]
    shares = (g * _shares(totals, seeds, rate)).astype(v.dtype)
    v_gradient = jnp.einsum("bhqk,bqhd->bkhd", zero(powers, seeds, rate, keep_weights), shares)
    slopes = jnp.einsum("bqhd,bkhd->bhqk", g, v, preferred_element_type=jnp.float32)
    slopes = drop(slopes, seeds, rate, keep_weights) - sums[..., None]
    slopes *= powers * (q.shape[-1] ** -0.5 / totals)[..., None]
    slopes = slopes.astype(q.dtype)
    q_gradient = jnp.einsum("bhqk,bkhd->bqhd", slopes, k)
    k_gradient = jnp.einsum("bhqk,bqhd->bkhd", slopes, q)
    return q_gradient, k_gradient, v_gradient, None, None


_attention.defvjp(_forward, _backward)
