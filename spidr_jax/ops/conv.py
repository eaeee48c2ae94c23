"""Convolutions without padding, with what follows them in a front end.

B batch, S samples, T frames, K taps, C channels, D output channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spidr_jax.ops.dispatch import select_kernel
from spidr_jax.ops.first_layer import first_layer
from spidr_jax.ops.norms import layer_norm_gelu


def conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int, dtype: Any
) -> jax.Array:
    """Convolve without padding.

    Where the stride divides K it is a product of matrices, which is faster than a convolution.

    Args:
        x: [B, S, C].
        kernel: [K, C, D].
        bias: [D]; None for none.
        stride: stride in samples.
        dtype: type of the arithmetic.

    Returns:
        [B, (S - K) // stride + 1, D].
    """
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    taps, channels, features = kernel.shape
    if taps % stride:
        layout = ("NWC", "WIO", "NWC")
        x = lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=layout)
    else:
        frames, steps = (x.shape[1] - taps) // stride + 1, taps // stride
        x = x[:, : (frames + steps - 1) * stride]
        x = x.reshape(x.shape[0], frames + steps - 1, stride * channels)
        x = jnp.concatenate([x[:, i : i + frames] for i in range(steps)], axis=-1)
        x = x @ kernel.reshape(taps * channels, features)
    return x if bias is None else x + bias.astype(dtype)


def conv_norm_gelu(
    x: jax.Array,
    kernel: jax.Array,
    conv_bias: jax.Array | None,
    scale: jax.Array,
    bias: jax.Array,
    stride: int,
    dtype: Any,
) -> jax.Array:
    """GELU of the LayerNorm of `conv`, whose scale and bias are [D].

    On waveforms, where C is 1 and there is no `conv_bias`, it can be one kernel.
    """
    taps, channels, features = kernel.shape
    if channels == 1 and conv_bias is None and select_kernel("first layer", dtype, taps, features):
        return first_layer(x[..., 0], kernel[:, 0], scale, bias, stride, dtype)
    return layer_norm_gelu(conv(x, kernel, conv_bias, stride, dtype), scale, bias)
