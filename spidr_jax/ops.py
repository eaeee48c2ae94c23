"""Norms, GELU and what goes with them, each with a derivative rule that keeps only its input.

Autodiff would keep float32 intermediates of every one; `plain.py` has the same functions without
rules, which the tests compare with. All compute in float32 and give the type of x.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from spidr_jax.dropout import drop

EPSILON = 1e-5
Saved = Any


def _phi(x: jax.Array) -> jax.Array:
    """The standard normal distribution function of float32 x."""
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


def _gelu_slope(x: jax.Array) -> jax.Array:
    return _phi(x) + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, through erf: XLA evaluates the erfc of `jax.nn.gelu` slowly."""
    wide = x.astype(jnp.float32)
    return (wide * _phi(wide)).astype(x.dtype)


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    slope = _gelu_slope(x.astype(jnp.float32))
    return ((g.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _standardise(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 x standardised over its last axis, its mean and inverse deviation [..., 1]."""
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    return centred * inverse, mean, inverse


def _affine(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    x = x if scale is None else x * scale
    return x if bias is None else x + bias


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """LayerNorm over the last axis: biased variance, eps 1e-5; scale and bias float32 or None."""
    return _layer_norm(x, scale, bias)[0]


def _layer_norm(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None
) -> tuple[jax.Array, Saved]:
    standard, mean, inverse = _standardise(x.astype(jnp.float32))
    return _affine(standard, scale, bias).astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_norm_backward(
    saved: Saved, g: jax.Array
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    x, mean, inverse, scale, bias = saved
    standard = (x.astype(jnp.float32) - mean) * inverse
    g = g.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    scale_gradient = None if scale is None else (g * standard).sum(axis=axes)
    bias_gradient = None if bias is None else g.sum(axis=axes)
    g = g if scale is None else g * scale
    means = g.mean(axis=-1, keepdims=True), (g * standard).mean(axis=-1, keepdims=True)
    gradient = inverse * (g - means[0] - standard * means[1])
    return gradient.astype(x.dtype), scale_gradient, bias_gradient


layer_norm.defvjp(_layer_norm, _layer_norm_backward)


@jax.custom_vjp
def layer_norm_gelu(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """GELU of the LayerNorm of x."""
    return _layer_norm_gelu(x, scale, bias)[0]


def _layer_norm_gelu(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None
) -> tuple[jax.Array, Saved]:
    standard, mean, inverse = _standardise(x.astype(jnp.float32))
    y = _affine(standard, scale, bias)
    return (y * _phi(y)).astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_norm_gelu_backward(saved: Saved, g: jax.Array) -> tuple[jax.Array | None, ...]:
    x, mean, inverse, scale, bias = saved
    y = _affine((x.astype(jnp.float32) - mean) * inverse, scale, bias)
    return _layer_norm_backward(saved, g.astype(jnp.float32) * _gelu_slope(y))


layer_norm_gelu.defvjp(_layer_norm_gelu, _layer_norm_gelu_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def add_layer_norm(
    residual: jax.Array,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
) -> jax.Array:
    """LayerNorm of residual + dropout(x), both [B, ..., D]; seeds as in `dropout`."""
    # Else XLA for GPUs computes in each layer the norms of all layers before anew: where no
    # derivative keeps them, a kernel of layer 12 read 91 arrays, and compilation took minutes.
    return lax.optimization_barrier(_add_layer_norm(residual, x, scale, bias, seeds, rate)[0])


def _add_layer_norm(
    residual: jax.Array,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
) -> tuple[jax.Array, Saved]:
    output, saved = _layer_norm(residual + drop(x, seeds, rate), scale, bias)
    return output, (saved, seeds)


def _add_layer_norm_backward(
    rate: float, saved: Saved, g: jax.Array
) -> tuple[jax.Array | None, ...]:
    norm_saved, seeds = saved
    gradient, *others = _layer_norm_backward(norm_saved, g)
    return gradient, drop(gradient, seeds, rate), *others, None


add_layer_norm.defvjp(_add_layer_norm, _add_layer_norm_backward)


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
