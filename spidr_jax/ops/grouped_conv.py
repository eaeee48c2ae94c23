"""A grouped convolution over time that each device computes for its own rows. B batch, T frames."""

from typing import Any

import jax
import jax.numpy as jnp

from spidr_jax.ops import platform, reference
from spidr_jax.ops.dispatch import select_kernel
from spidr_jax.ops.partition import partition_batch


@jax.custom_vjp
def grouped_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Convolve [B, T, C] with a kernel [K, C / groups, D], K // 2 zeros at either end, and add [D].

    Returns:
        [B, T, D] for odd K, [B, T + 1, D] for even K. Nothing but the gradients of kernel and bias
        is communicated where B is split over devices.
    """
    return _forward(x, kernel, bias)[0]


def _forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    own = _kernel(x, kernel)
    output = own.forward(x, kernel, bias) if own else _conv(x, kernel) + bias
    return output, (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    own = _kernel(*saved)
    gradients = own.gradients(*saved, g) if own else _gradients(*saved, g)
    return *gradients, g.sum(axis=(0, 1))


grouped_conv.defvjp(_forward, _backward)


def _kernel(x: jax.Array, kernel: jax.Array) -> Any:
    groups = x.shape[-1] // kernel.shape[1]
    return select_kernel("grouped convolution", x.dtype, kernel.shape, groups)


def _local_gradients(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    if platform.kind() != "cpu":
        return jax.vjp(reference.grouped_conv, x, kernel)[1](g)
    (x_gradient,) = jax.vjp(lambda x: reference.grouped_conv(x, kernel), x)[1](g)
    return x_gradient, _kernel_gradient(x, kernel, g)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """As a product per tap and group: XLA's convolution for it takes ten times as long on a CPU."""
    width, channels, _ = kernel.shape
    x = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    x, g = (each.reshape(*each.shape[:2], x.shape[2] // channels, -1) for each in (x, g))
    frames = g.shape[1]
    taps = [jnp.einsum("btgi,btgo->igo", x[:, i : i + frames], g) for i in range(width)]
    return jnp.stack(taps).reshape(kernel.shape)


_conv = partition_batch(reference.grouped_conv, "b t c, k i d -> b s e", whole=(1,))
_gradients = partition_batch(
    _local_gradients, "b t c, k i d, b s e -> b u f, l j g", whole=(1,), summed=(1,)
)
