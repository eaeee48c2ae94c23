"""Norms, GELU and what goes with them, each with a derivative rule that keeps only its input.

Autodiff would keep float32 intermediates of every one; `reference.py` has the same functions
without rules. All compute in float32 and give the type of x.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spidr_jax.ops.dispatch import select_kernel
from spidr_jax.ops.dropout import apply_dropout, recompute
from spidr_jax.ops.reference import EPSILON

Maybe = jax.Array | None
Saved = Any
Gradients = tuple[Maybe, ...]


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


def _standardise(
    x: jax.Array, axis: int = -1, where: Maybe = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 x standardised over an axis, its mean and inverse deviation, of size 1 there."""
    mean = x.mean(axis=axis, keepdims=True, where=where)
    centred = x - mean
    variance = jnp.square(centred).mean(axis=axis, keepdims=True, where=where)
    inverse = lax.rsqrt(variance + EPSILON)
    return centred * inverse, mean, inverse


def _affine(x: jax.Array, scale: Maybe, bias: Maybe) -> jax.Array:
    x = x if scale is None else x * scale
    return x if bias is None else x + bias


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: Maybe, bias: Maybe) -> jax.Array:
    """LayerNorm over the last axis: biased variance, eps 1e-5; scale and bias float32 or None."""
    return _xla_forward(x, scale, bias, gelu=False)[0]  # which XLA fuses with what is before


def _kernel(x: jax.Array) -> Any:
    return select_kernel("norms", x.dtype, x.shape[-1]) if x.ndim == 3 else None


def _forward(x: jax.Array, scale: Maybe, bias: Maybe, gelu: bool) -> tuple[jax.Array, Saved]:
    if own := _kernel(x):
        output, *statistics = own.forward(x, scale, bias, gelu)
        return output, (x, *(each[..., None] for each in statistics), scale, bias)
    return _xla_forward(x, scale, bias, gelu)


def _xla_forward(x: jax.Array, scale: Maybe, bias: Maybe, gelu: bool) -> tuple[jax.Array, Saved]:
    standard, mean, inverse = _standardise(x.astype(jnp.float32))
    y = _affine(standard, scale, bias)
    return (y * _phi(y) if gelu else y).astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(saved: Saved, g: jax.Array, seeds: Maybe, rate: float, gelu: bool) -> Gradients:
    """Of x, of what was dropped (that of x without seeds), of scale and of bias."""
    x, mean, inverse, scale, bias = saved
    if own := _kernel(x):
        statistics = mean[..., 0], inverse[..., 0]
        return own.gradients(x, *statistics, g, scale, bias, seeds, rate, gelu)
    return _xla_backward(saved, g, seeds, rate, gelu)


def _xla_backward(saved: Saved, g: jax.Array, seeds: Maybe, rate: float, gelu: bool) -> Gradients:
    """The gradient at the norm's output is computed again for its sums: stored, it is float32."""
    x, mean, inverse, scale, bias = saved

    def at_norm(
        x: jax.Array, mean: jax.Array, inverse: jax.Array, g: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        standard = (x.astype(jnp.float32) - mean) * inverse
        g = g.astype(jnp.float32)
        return standard, g * _gelu_slope(_affine(standard, scale, bias)) if gelu else g

    standard, slopes = at_norm(x, mean, inverse, g)
    slopes = slopes if scale is None else slopes * scale
    means = slopes.mean(axis=-1, keepdims=True), (slopes * standard).mean(axis=-1, keepdims=True)
    gradient = (inverse * (slopes - means[0] - standard * means[1])).astype(x.dtype)
    standard, slopes = at_norm(*recompute((x, mean, inverse, g)))
    axes = tuple(range(x.ndim - 1))
    return (
        gradient,
        apply_dropout(gradient, recompute(seeds), rate),
        None if scale is None else (slopes * standard).sum(axis=axes),
        None if bias is None else slopes.sum(axis=axes),
    )


def _layer_norm_backward(gelu: bool, saved: Saved, g: jax.Array) -> Gradients:
    gradient, _, *others = _backward(saved, g, None, 0.0, gelu)
    return gradient, *others


layer_norm.defvjp(partial(_forward, gelu=False), partial(_layer_norm_backward, False))


@jax.custom_vjp
def layer_norm_gelu(x: jax.Array, scale: Maybe, bias: Maybe) -> jax.Array:
    """GELU of the LayerNorm of x."""
    return _forward(x, scale, bias, gelu=True)[0]


layer_norm_gelu.defvjp(partial(_forward, gelu=True), partial(_layer_norm_backward, True))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def add_layer_norm(
    residual: jax.Array, x: jax.Array, scale: Maybe, bias: Maybe, seeds: Maybe, rate: float
) -> jax.Array:
    """LayerNorm of residual + dropout(x), both [B, ..., D]; seeds as in `dropout`."""
    # Else XLA for GPUs computes in each layer the norms of all layers before again: where no
    # derivative keeps them, a kernel of layer 12 read 91 arrays, and compilation took minutes.
    x = residual + apply_dropout(x, seeds, rate)
    return lax.optimization_barrier(_xla_forward(x, scale, bias, gelu=False)[0])


def _add_layer_norm(
    residual: jax.Array, x: jax.Array, scale: Maybe, bias: Maybe, seeds: Maybe, rate: float
) -> tuple[jax.Array, Saved]:
    output, saved = _forward(residual + apply_dropout(x, seeds, rate), scale, bias, gelu=False)
    return output, (saved, seeds)


def _add_layer_norm_backward(rate: float, saved: Saved, g: jax.Array) -> tuple[Maybe, ...]:
    norm_saved, seeds = saved
    return *_backward(norm_saved, g, seeds, rate, gelu=False), None


add_layer_norm.defvjp(_add_layer_norm, _add_layer_norm_backward)


def instance_norm(x: jax.Array, frame_mask: Maybe = None) -> jax.Array:
    """Standardise each channel of each utterance over its valid frames, in float32.

    Args:
        x: [B, T, C].
        frame_mask: bool [B, T], true at valid frames; None if all are.

    Returns:
        float32 [B, T, C], with biased variance and eps 1e-5.
    """
    where = None if frame_mask is None else frame_mask[..., None]
    return _standardise(x.astype(jnp.float32), 1, where)[0]
