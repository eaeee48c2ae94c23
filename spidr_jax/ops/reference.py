"""What `ops.py`, `attention.py`, `dropout.py` compute, left to autodiff: the tests' yardstick."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from spidr_jax.ops.dropout import drop as dropout
from spidr_jax.ops.dropout import keep_weights
from spidr_jax.ops.norms import EPSILON

__all__ = ["add_layer_norm", "attention", "dropout", "gelu", "layer_norm", "layer_norm_gelu"]


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    wide = x.astype(jnp.float32)
    variance = wide.var(axis=-1, keepdims=True)
    y = (wide - wide.mean(axis=-1, keepdims=True)) * lax.rsqrt(variance + EPSILON)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def layer_norm_gelu(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    return gelu(layer_norm(x, scale, bias))


def add_layer_norm(
    residual: jax.Array,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
) -> jax.Array:
    return layer_norm(residual + dropout(x, seeds, rate), scale, bias)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    frame_mask: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
) -> jax.Array:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores /= math.sqrt(q.shape[-1])
    if frame_mask is not None:
        scores = jnp.where(frame_mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores).astype(v.dtype), seeds, rate, keep_weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
