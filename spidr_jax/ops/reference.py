"""What the operations compute, as plainly as possible and left to autodiff.

Derivative rules and kernels are compared with these functions, by tests and by the kernels' own.
B batch, T frames, C channels, D width.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from spidr_jax.ops.dropout import apply_dropout, attention_keep_mask

EPSILON = 1e-5  # of norms


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, computed in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """LayerNorm over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    variance = wide.var(axis=-1, keepdims=True)
    y = (wide - wide.mean(axis=-1, keepdims=True)) * lax.rsqrt(variance + EPSILON)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def layer_norm_gelu(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """GELU of the LayerNorm of x."""
    return gelu(layer_norm(x, scale, bias))


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve [B, T, C] with a kernel [K, C / groups, D], K // 2 zeros at either end."""
    taps, channels, _ = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(taps // 2, taps // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1] // channels,
    )


def attention(
    qkv: jax.Array, frame_mask: jax.Array | None, seeds: jax.Array | None, rate: float
) -> jax.Array:
    """`ops.attention.attention`."""
    q, k, v = (qkv[:, :, i] for i in range(3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores /= math.sqrt(q.shape[-1])
    if frame_mask is not None:
        scores = jnp.where(frame_mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    weights = apply_dropout(weights, seeds, rate, attention_keep_mask)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
