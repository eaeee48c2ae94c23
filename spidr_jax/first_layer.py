"""A waveform's first convolution, LayerNorm and GELU as one product with few terms.

Over the channels of a frame, the convolution's mean and variance are a linear and a quadratic form
of the window of audio that the frame hears. So the norm's output is a product, too: of windows
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

from spidr_jax import own_kernels
from spidr_jax.ops import EPSILON

Saved = Any
_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def own_kernel(taps: int, channels: int, dtype: Any) -> Any:
    """The kernel that `first_layer` cannot do without; None where it does not run."""
    return own_kernels.load("first layer", "first_layer_kernel", dtype, taps, channels, dtype)


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
        waveforms: float32 [B, S], which get no gradient.
        kernel: float32 [K, D].
        scale: float32 [D], of the norm.
        bias: float32 [D], of the norm.
        stride: of the convolution.
        dtype: of the product's factors and of the result.

    Returns:
        [B, (S - K) // stride + 1, D]. In 16 bits it is nearer to the truth than the convolution,
        where neighbouring samples are as alike as in speech.
    """
    return _forward(waveforms, kernel, scale, bias, stride, dtype)[0]


def _forward(
    waveforms: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    stride: int,
    dtype: Any,
) -> tuple[jax.Array, Saved]:
    taps, channels = kernel.shape
    windows = _product(_windows(waveforms, taps, stride), _basis(taps))
    centred = _product(_basis(taps).T, kernel - kernel.mean(axis=1, keepdims=True))
    covariance = _product(centred, centred.T) / channels
    variance = (_product(windows, covariance) * windows).sum(axis=-1, keepdims=True)
    standard = windows * lax.rsqrt(jnp.maximum(variance, 0) + EPSILON)
    x = jnp.pad(standard, [(0, 0), (0, 0), (0, 2)], constant_values=1).astype(dtype)
    kept = lax.reduce_precision(bias, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    weights = jnp.stack([*centred * scale, kept, bias - kept]).astype(dtype)
    y = own_kernel(taps, channels, dtype).forward(x, weights)
    return y, (x, weights, centred, scale)


def _backward(stride: int, dtype: Any, saved: Saved, g: jax.Array) -> tuple[jax.Array | None, ...]:
    """Of kernel, scale and bias: through the product, and through the deviation of its windows."""
    x, weights, centred, scale = saved
    taps, channels = centred.shape
    sums, scales = own_kernel(taps, channels, dtype).gradients(x, weights, g, taps)
    x = x[..., :taps].astype(jnp.float32)
    moments = (scales[..., None, None] * x[..., None] * x[..., None, :]).sum(axis=(0, 1))
    gradient = sums[:taps] * scale - _product(moments, centred) / channels
    gradient = _product(_basis(taps), gradient - gradient.mean(axis=1, keepdims=True))
    return None, gradient, (sums[:taps] * centred).sum(axis=0), sums[taps]


first_layer.defvjp(_forward, _backward)


def _windows(waveforms: jax.Array, taps: int, stride: int) -> jax.Array:
    """What each frame hears, [B, T, K]."""
    last = (waveforms.shape[1] - taps) // stride * stride
    return jnp.stack([waveforms[:, i : i + last + 1 : stride] for i in range(taps)], axis=-1)


def _basis(taps: int) -> np.ndarray:
    """The cosine transform [K, K]; a product stays what it is when both of its factors are turned.

    A window of speech is nearly constant. What most filters make of it is a small difference of
    large terms, of which rounding leaves little; between cosines there is no such difference.
    """
    places = np.arange(taps)
    cosines = np.cos(np.pi / taps * (places[:, None] + 0.5) * places)
    return (cosines / np.linalg.norm(cosines, axis=0)).astype(np.float32)
