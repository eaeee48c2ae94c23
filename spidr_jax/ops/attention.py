"""Attention over whole utterances, with dropout: softmax(q k / sqrt(d)) v.

B batch, T frames, H heads, d width of a head.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.ops.dispatch import select_kernel
from spidr_jax.ops.dropout import apply_dropout, apply_mask, attention_keep_mask, recompute


def attention(
    qkv: jax.Array, frame_mask: jax.Array | None, seeds: jax.Array | None, rate: float
) -> jax.Array:
    """Attend from every frame to the valid ones.

    Args:
        qkv: queries, keys and values [B, T, 3, H, d].
        frame_mask: bool [B, T], true at an utterance's valid frames, which come first; None if
            all are.
        seeds: uint32 [B, 2] of the dropout of the weights; None for no dropout.
        rate: dropout probability.

    Returns:
        [B, T, H, d]; the softmax is float32.
    """
    _, frames, _, *head = qkv.shape
    if rate == 0 or seeds is None:
        seeds, rate = None, 0.0
    kernel = select_kernel("attention", qkv.dtype, head[1])
    if kernel is None and seeds is None:
        kernel = select_kernel("attention without dropout", qkv.dtype, (frames, *head))
    if kernel:
        return kernel.attention(qkv, frame_mask, seeds, rate)
    return _attention([qkv[:, :, i] for i in range(3)], frame_mask, seeds, rate)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(
    qkv: list[jax.Array], frame_mask: jax.Array | None, seeds: jax.Array | None, rate: float
) -> jax.Array:
    return _forward(qkv, frame_mask, seeds, rate)[0]


def _forward(
    qkv: list[jax.Array], frame_mask: jax.Array | None, seeds: jax.Array | None, rate: float
) -> tuple[jax.Array, Any]:
    q, k, v = qkv
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5  # [B, H, T, T]
    if frame_mask is not None:
        scores = jnp.where(frame_mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    peaks = scores.max(axis=-1, keepdims=True)
    powers = jnp.exp(scores - peaks).astype(v.dtype)  # the softmax's numerators
    totals = powers.astype(jnp.float32).sum(axis=-1)  # [B, H, T]
    kept = apply_mask(powers, seeds, rate, attention_keep_mask)
    output = jnp.einsum("bhqk,bkhd->bqhd", kept, v, preferred_element_type=jnp.float32)
    output *= _shares(totals, seeds, rate)
    return output.astype(v.dtype), (qkv, powers, totals, output, seeds)


def _shares(totals: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """What makes numerators that are kept the weights, [B, T, H, 1]."""
    return 1 / (totals * (1 - rate if seeds is not None else 1)).swapaxes(1, 2)[..., None]


def _backward(rate: float, saved: Any, g: jax.Array) -> tuple[list[jax.Array], None, None]:
    """As in flash attention, the softmax's row sums come from the output, not from [T, T].

    The output is kept in float32 for that: rounded, it would double the gradients' error.
    """
    (q, k, v), powers, totals, output, seeds = saved
    seeds = recompute(seeds)
    sums = (g.astype(jnp.float32) * output).sum(axis=-1).swapaxes(1, 2)  # [B, H, T]
    shares = (g * _shares(totals, seeds, rate)).astype(v.dtype)
    v_gradient = jnp.einsum(
        "bhqk,bqhd->bkhd", apply_mask(powers, seeds, rate, attention_keep_mask), shares
    )
    slopes = jnp.einsum("bqhd,bkhd->bhqk", g, v, preferred_element_type=jnp.float32)
    slopes = apply_dropout(slopes, seeds, rate, attention_keep_mask) - sums[..., None]
    slopes *= powers * (q.shape[-1] ** -0.5 / totals)[..., None]
    slopes = slopes.astype(q.dtype)
    q_gradient = jnp.einsum("bhqk,bkhd->bqhd", slopes, k)
    k_gradient = jnp.einsum("bhqk,bqhd->bkhd", slopes, q)
    return [q_gradient, k_gradient, v_gradient], None, None


_attention.defvjp(_forward, _backward)
