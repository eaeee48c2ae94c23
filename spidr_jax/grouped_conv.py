"""A grouped convolution over time that each device computes for its own rows only.

XLA's partitioner (openxla/xla#47945) gathers the whole batch on every device for a convolution
with `feature_group_count` above 1; here it is told that rows do not meet. B batch, T frames.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spidr_jax import backend

Shardings = tuple[Mesh, Any, Any, Any]


@jax.custom_vjp
def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve [B, T, C] with a kernel [K, C / groups, D], K // 2 zeros at either end.

    Returns:
        [B, T, D] for odd K, [B, T + 1, D] for even K. Nothing but the kernel's gradient is
        communicated where B is split over devices.
    """
    return _by_rows(x, kernel)


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    width, channels, _ = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(width // 2, width // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1] // channels,
    )


def _gradients(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    if backend.kind() != "cpu":
        return jax.vjp(_conv, x, kernel)[1](g)
    (x_gradient,) = jax.vjp(lambda x: _conv(x, kernel), x)[1](g)
    return x_gradient, _kernel_gradient(x, kernel, g)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """As a product per tap and group: XLA's convolution for it takes ten times as long on a CPU."""
    width, channels, _ = kernel.shape
    x = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    x, g = (each.reshape(*each.shape[:2], x.shape[2] // channels, -1) for each in (x, g))
    frames = g.shape[1]
    taps = [jnp.einsum("btgi,btgo->igo", x[:, i : i + frames], g) for i in range(width)]
    return jnp.stack(taps).reshape(kernel.shape)


_by_rows = custom_partitioning(_conv)
_gradients_by_rows = custom_partitioning(_gradients)


def _axes(mesh: Mesh, operands: Any) -> tuple[Any, NamedSharding, NamedSharding]:
    """The mesh axes that split the rows, and the shardings of rows and kernel."""
    axes = operands[0].sharding.spec[0]
    return axes, NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())


def _partition(mesh: Mesh, operands: Any, _: Any) -> Shardings:
    _, rows, whole = _axes(mesh, operands)
    return mesh, _conv, rows, (rows, whole)


def _partition_gradients(mesh: Mesh, operands: Any, _: Any) -> Shardings:
    axes, rows, whole = _axes(mesh, operands)

    def local(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_gradient, kernel_gradient = _gradients(x, kernel, g)
        return x_gradient, lax.psum(kernel_gradient, axes) if axes else kernel_gradient

    return mesh, local, (rows, whole), (rows, whole, rows)


# one letter for what is split alike: rows only, or moments' shardings would come to kernels
_by_rows.def_partition(_partition, sharding_rule="b t c, k i d -> b s e")
_gradients_by_rows.def_partition(
    _partition_gradients, sharding_rule="b t c, k i d, b s e -> b u f, l j g"
)
grouped_conv.defvjp(
    lambda x, kernel: (_by_rows(x, kernel), (x, kernel)),
    lambda saved, g: _gradients_by_rows(*saved, g),
)
