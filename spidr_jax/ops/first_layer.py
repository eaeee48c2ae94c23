"""A waveform's first convolution, LayerNorm and GELU as one product with few terms.

Over the channels of a frame, the convolution's mean and variance are a linear and a quadratic form
of the frame's window of audio. So the norm's output is a product, too: of windows
that are divided by the deviation, and of a kernel less its mean, times the norm's scale. Neither
the convolution's output nor its gradient, a training step's largest arrays, are ever made.

B batch, S samples, T frames, K taps, D channels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spidr_jax.ops.dispatch import select_kernel
from spidr_jax.ops.norms import gelu
from spidr_jax.ops.reference import EPSILON

Saved = Any
_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _kernel(taps: int, channels: int, dtype: Any) -> Any:
    """The kernel that `first_layer` cannot do without."""
    return select_kernel("first layer", dtype, taps, channels)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def first_layer(
    waveforms: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    stride: int,
    dtype: Any,
) -> jax.Array:
    """GELU of the LayerNorm of a convolution of waveforms, without padding.

    Args:
        waveforms: float32 [B, S].
        kernel: float32 [K, D].
        scale: scale of the norm, float32 [D].
        bias: bias of the norm, float32 [D].
        stride: stride of the convolution.
        dtype: type of the product's factors and of the result.

    Returns:
        [B, (S - K) // stride + 1, D]. In 16 bits it is nearer to the truth than the convolution,
        where neighbouring samples are as alike as in speech.
    """
    return _layer([waveforms, kernel, scale, bias], stride, dtype)[0]


def _layer(arrays: list[jax.Array], stride: int, dtype: Any) -> tuple[jax.Array, Saved]:
    waveforms, kernel, scale, bias = arrays
    taps, channels = kernel.shape
    centred = _product(_basis(taps).T, kernel - kernel.mean(axis=1, keepdims=True))
    standard = _standardise(waveforms, centred, stride)
    x = jnp.pad(standard, [(0, 0), (0, 0), (0, 2)], constant_values=1).astype(dtype)
    rounded = lax.reduce_precision(bias, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    weights = jnp.stack([*centred * scale, rounded, bias - rounded]).astype(dtype)
    y = _kernel(taps, channels, dtype).forward(x, weights)
    return y, (x, weights, centred, scale)


def _standardise(waveforms: jax.Array, centred: jax.Array, stride: int) -> jax.Array:
    """Windows [B, T, K], as cosines, by the deviation of their products with the kernel [K, D]."""
    taps, channels = centred.shape
    last = (waveforms.shape[1] - taps) // stride * stride
    windows = [waveforms[:, i : i + last + 1 : stride] for i in range(taps)]
    turned = _product(jnp.stack(windows, axis=-1), _basis(taps))
    covariance = _product(centred, centred.T) / channels
    variance = (_product(turned, covariance) * turned).sum(axis=-1, keepdims=True)
    return turned * lax.rsqrt(jnp.maximum(variance, 0) + EPSILON)


def _forward(
    waveforms: Any, kernel: Any, scale: Any, bias: Any, stride: int, dtype: Any
) -> tuple[jax.Array, Saved]:
    arrays = [each.value for each in (waveforms, kernel, scale, bias)]
    y, saved = _layer(arrays, stride, dtype)
    return y, (saved, waveforms.value if waveforms.perturbed else None)


def _backward(stride: int, dtype: Any, saved: Saved, g: Any) -> tuple[jax.Array | None, ...]:
    """Of kernel, scale and bias: through the product, and through the deviation of its windows."""
    (x, weights, centred, scale), waveforms = saved
    taps, channels = centred.shape
    sums, scales = _kernel(taps, channels, dtype).gradients(x, weights, g, taps)
    terms = x[..., :taps].astype(jnp.float32)
    moments = (scales[..., None, None] * terms[..., None] * terms[..., None, :]).sum(axis=(0, 1))
    gradient = sums[:taps] * scale - _product(moments, centred) / channels
    gradient = _product(_basis(taps), gradient - gradient.mean(axis=1, keepdims=True))
    return (
        None if waveforms is None else _of_waveforms(waveforms, x, weights, centred, stride, g),
        gradient,
        (sums[:taps] * centred).sum(axis=0),
        sums[taps],
    )


def _of_waveforms(
    waveforms: jax.Array,
    x: jax.Array,
    weights: jax.Array,
    centred: jax.Array,
    stride: int,
    g: jax.Array,
) -> jax.Array:
    """The gradient that training does not ask for, by products of [B, T, D] in memory."""
    x, weights, g = (each.astype(jnp.float32) for each in (x, weights, g))
    (slopes,) = jax.vjp(gelu, _product(x, weights))[1](g)
    standardise = partial(_standardise, centred=centred, stride=stride)
    return jax.vjp(standardise, waveforms)[1](_product(slopes, weights[: len(centred)].T))[0]


first_layer.defvjp(_forward, _backward, symbolic_zeros=True)


def _basis(taps: int) -> np.ndarray:
    """The cosine transform [K, K]; a product stays what it is when both of its factors are turned.

    A window of speech is nearly constant. What most filters make of it is a small difference of
    large terms, of which rounding leaves little; between cosines there is no such difference.
    """
    places = np.arange(taps)
    cosines = np.cos(np.pi / taps * (places[:, None] + 0.5) * places)
    return (cosines / np.linalg.norm(cosines, axis=0)).astype(np.float32)
