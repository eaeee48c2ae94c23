"""A grouped convolution over time in kernels of our own, for GPUs.

A group's channels are padded to a power of two, and each program adds up a product of matrices a
tap, for one group and some frames. B rows, T frames, C channels in G groups, D outputs, K taps,
P frames with padding, W channels of a group with padding.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.by_rows import by_rows
from spidr_jax.own_kernels import difference, run_now

BLOCK = 128  # frames that a program takes at a time


def forward(x: jax.Array, kernel: jax.Array, interpret: bool = False) -> jax.Array:
    """`grouped_conv.grouped_conv`, in the type of x, summed in float32.

    Args:
        x: [B, T, C].
        kernel: [K, C / G, D].
        interpret: have JAX compute the kernels step by step, on any device, for tests.
    """
    taps = len(kernel)
    return _convolve(x, kernel, taps // 2, x.shape[1] + (taps % 2 == 0), interpret)


def gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and kernel, in the kernel's type, from the output's gradient g."""
    taps, channels, _ = kernel.shape
    groups = x.shape[-1] // channels
    split = kernel[::-1].reshape(taps, channels, groups, -1).transpose(0, 3, 2, 1)
    back = split.reshape(taps, -1, groups * channels)
    return (
        _convolve(g, back, taps - 1 - taps // 2, x.shape[1], interpret),
        _kernel_gradient(x, g, taps, channels, interpret).astype(kernel.dtype),
    )


def largest_error(
    shape: tuple[int, int, int], groups: int, dtype: Any, plain: Any, interpret: bool = False
) -> float:
    """Run the kernels on noise; the largest relative error of value and gradients.

    Args:
        shape: of the convolution's kernel, [K, C / G, D].
        groups: G.
        dtype: of all arrays.
        plain: what they should compute, from x and kernel.
        interpret: as for `forward`.
    """
    taps, channels, outputs = shape
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 300, channels * groups)).astype(dtype)
    kernel = draw.standard_normal(shape).astype(dtype)
    g = draw.standard_normal((2, 300 + (taps % 2 == 0), outputs)).astype(dtype)

    def error(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        expected, back = jax.vjp(plain, x, kernel)
        found = [forward(x, kernel, interpret), *gradients(x, kernel, g, interpret)]
        return difference(found, [expected, *back(g)])

    return run_now(error, x, kernel, g)


def _convolve(
    x: jax.Array, kernel: jax.Array, left: int, frames: int, interpret: bool
) -> jax.Array:
    """The first [B, frames, D] of a convolution that starts `left` zeros before x [B, T, C]."""
    taps, channels, outputs = kernel.shape
    groups = x.shape[-1] // channels
    width = _width(channels, outputs // groups)
    per_group = kernel.reshape(taps, channels, groups, -1).transpose(2, 0, 1, 3)
    padded = _pad_to(per_group, (groups, taps, width, width))
    call = _convolution(frames, outputs, interpret)
    return call(_split(x, groups, width, left, _whole_blocks(frames) + taps), padded)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, taps: int, channels: int, interpret: bool
) -> jax.Array:
    """The gradient [K, C / G, D], float32, of a kernel of so many taps and channels of a group."""
    groups = x.shape[-1] // channels
    outputs = g.shape[-1] // groups
    width, frames = _width(channels, outputs), _whole_blocks(g.shape[1])
    call = _correlation(taps, interpret)
    x = _split(x, groups, width, taps // 2, frames + taps)
    found = call(x, _split(g, groups, width, 0, frames))  # [B, G, K, W, W]
    found = found[..., :channels, :outputs].sum(axis=0)
    return found.transpose(1, 2, 0, 3).reshape(taps, channels, -1)


def _width(*channels: int) -> int:
    return max(16, *(int(pl.next_power_of_2(number)) for number in channels))


def _whole_blocks(frames: int) -> int:
    return -(-frames // BLOCK) * BLOCK


def _pad_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.pad(x, [(0, wanted - size) for wanted, size in zip(shape, x.shape, strict=True)])


def _split(x: jax.Array, groups: int, width: int, left: int, frames: int) -> jax.Array:
    """[B, T, C] -> [B, G, P, W], with so many zero frames first and P of frames in all."""
    rows, _, channels = x.shape
    x = x.reshape(*x.shape[:2], groups, channels // groups).swapaxes(1, 2)
    x = jnp.pad(x, ((0, 0), (0, 0), (left, 0), (0, 0)))[:, :, :frames]
    return _pad_to(x, (rows, groups, frames, width))


@cache
def _convolution(frames: int, outputs: int, interpret: bool) -> Any:
    def call(x: jax.Array, kernel: jax.Array) -> jax.Array:
        rows, groups, padded, width = x.shape
        return pl.pallas_call(
            partial(_convolve_kernel, taps=kernel.shape[1], frames=frames, own=outputs // groups),
            grid=(rows, groups, pl.cdiv(frames, BLOCK)),
            in_specs=[
                pl.BlockSpec((None, None, padded, width), lambda b, g, i: (b, g, 0, 0)),
                pl.BlockSpec((None, *kernel.shape[1:]), lambda b, g, i: (g, 0, 0, 0)),
            ],
            out_specs=pl.BlockSpec((None, frames, outputs), lambda b, g, i: (b, 0, 0)),
            out_shape=jax.ShapeDtypeStruct((rows, frames, outputs), x.dtype),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
            interpret=interpret,
            name="grouped_conv",
        )(x, kernel)

    return by_rows(call, "b g p w, h k i o -> b t d", whole=(1,))


@cache
def _correlation(taps: int, interpret: bool) -> Any:
    def call(x: jax.Array, g: jax.Array) -> jax.Array:
        rows, groups, _, width = x.shape
        shape = rows, groups, taps, width, width
        return pl.pallas_call(
            _correlate_kernel,
            grid=(rows, groups, taps),
            in_specs=[
                pl.BlockSpec((None, None, each.shape[2], width), lambda b, g, k: (b, g, 0, 0))
                for each in (x, g)
            ],
            out_specs=pl.BlockSpec((None, None, None, width, width), lambda *i: (*i, 0, 0)),
            out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
            interpret=interpret,
            name="grouped_conv_kernel_gradient",
        )(x, g)

    return by_rows(call, "b g p w, b h q v -> b m k i o")


def _convolve_kernel(x: Any, kernel: Any, output: Any, *, taps: int, frames: int, own: int) -> None:
    group, start = pl.program_id(1), pl.program_id(2) * BLOCK
    width = x.shape[-1]

    def add(tap: jax.Array, total: jax.Array) -> jax.Array:
        return total + triton.dot(x[pl.ds(start + tap, BLOCK), :], kernel[tap])

    total = jax.lax.fori_loop(0, taps, add, jnp.zeros((BLOCK, width), jnp.float32))
    is_frame = start + jnp.arange(BLOCK) < frames
    is_own = jnp.arange(width) < own
    place = output.at[pl.ds(start, BLOCK), pl.ds(group * own, width)]
    triton.store(place, total.astype(output.dtype), mask=is_frame[:, None] & is_own[None])


def _correlate_kernel(x: Any, g: Any, gradient: Any) -> None:
    tap, (frames, width) = pl.program_id(2), g.shape

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        here = x[pl.ds(i * BLOCK + tap, BLOCK), :]
        return total + triton.dot(here, g[pl.ds(i * BLOCK, BLOCK), :], trans_a=True)

    zeros = jnp.zeros((width, width), jnp.float32)
    gradient[...] = jax.lax.fori_loop(0, frames // BLOCK, add, zeros)
