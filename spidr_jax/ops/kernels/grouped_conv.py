"""A grouped convolution over time in kernels of our own, for GPUs.

Value and gradients are products with windows of x: for each frame some frames from it on, side by
side, of each its group's channels. They are read where x lies, so that no copy of it, padded or
split by groups, reaches the GPU's memory; and tensor cores need no padding between taps.

B rows, T frames, C channels in G groups, D outputs, K taps.
"""

import math
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops import reference
from spidr_jax.ops.kernels.self_test import largest_error
from spidr_jax.ops.partition import partition_batch

# The convolution: frames that a program has, places of their windows that it takes at a time. Of
# 4 warps, sums of base's 48 outputs, padded to 64, take 64 registers a thread.
FRAMES, PLACES = 128, 64
CONVOLVE = triton.CompilerParams(num_warps=4, num_stages=3)
# The kernel's gradient: outputs and places of windows that a program has, frames that it takes at
# a time, and rows that it goes through.
OUTPUTS, WINDOW, STEP, ROWS = 128, 256, 64, 4
# Of 8 warps, the sums of a program, 128 x 256 float32, take 128 registers a thread; 4 warps would
# need 256, more than there are.
CORRELATE = triton.CompilerParams(num_warps=8, num_stages=3)


def forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, interpret: bool = False) -> jax.Array:
    """`grouped_conv.grouped_conv`, in the type of x, summed in float32.

    Args:
        x: [B, T, C].
        kernel: [K, C / G, D].
        bias: [D].
        interpret: have JAX compute the kernels step by step, on any device, for tests.
    """
    taps = len(kernel)
    return _convolve(x, kernel, bias, taps // 2, x.shape[1] + (taps % 2 == 0), interpret)


def gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and kernel, in the kernel's type, from the output's gradient g."""
    taps, channels, _ = kernel.shape
    groups = x.shape[-1] // channels
    split = kernel[::-1].reshape(taps, channels, groups, -1).transpose(0, 3, 2, 1)
    back = split.reshape(taps, -1, groups * channels)
    return (
        _convolve(g, back, jnp.zeros_like(x[0, 0]), taps - 1 - taps // 2, x.shape[1], interpret),
        _correlation(taps, channels, interpret)(x, g).astype(kernel.dtype),
    )


def self_test(
    dtype: Any, shape: tuple[int, int, int], groups: int, interpret: bool = False
) -> float:
    """The largest relative error of value and gradients on noise, of a kernel [K, C / G, D]."""
    taps, channels, outputs = shape
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 300, channels * groups)).astype(dtype)
    kernel = draw.standard_normal(shape).astype(dtype)
    bias = draw.standard_normal(outputs).astype(dtype)
    g = draw.standard_normal((2, 300 + (taps % 2 == 0), outputs)).astype(dtype)

    def compare(*arrays: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        x, kernel, bias, g = arrays
        expected, back = jax.vjp(reference.grouped_conv, x, kernel)
        found = [forward(x, kernel, bias, interpret), *gradients(x, kernel, g, interpret)]
        return found, [expected + bias, *back(g)]

    return largest_error(compare, x, kernel, bias, g)


def _convolve(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, left: int, frames: int, interpret: bool
) -> jax.Array:
    """The first [B, frames, D] of a convolution that starts `left` zeros before x [B, T, C]."""
    taps, channels, outputs = kernel.shape
    flat = kernel.reshape(1, taps * channels, outputs)
    return _convolution(channels, left, frames, interpret)(x, flat, bias)


@cache
def _convolution(channels: int, left: int, frames: int, interpret: bool) -> Any:
    """A function of x [B, T, C], a kernel [1, K * C / G, D] and a bias [D]: [B, frames, D]."""

    def call(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        rows, _, inputs = x.shape
        outputs = kernel.shape[2]
        groups = inputs // channels
        return pl.pallas_call(
            partial(_convolve_kernel, channels=channels, own=outputs // groups, left=left),
            grid=(rows, groups, pl.cdiv(frames, FRAMES)),
            in_specs=[
                pl.BlockSpec((1, *x.shape[1:]), lambda b, g, i: (b, 0, 0)),
                pl.BlockSpec(kernel.shape, lambda b, g, i: (0, 0, 0)),
                pl.BlockSpec(bias.shape, lambda b, g, i: (0,)),
            ],
            out_specs=pl.BlockSpec((None, frames, outputs), lambda b, g, i: (b, 0, 0)),
            out_shape=jax.ShapeDtypeStruct((rows, frames, outputs), x.dtype),
            compiler_params=CONVOLVE,
            interpret=interpret,
            name="grouped_conv",
        )(x, kernel, bias)

    return partition_batch(call, "b t c, l k d, f -> b s e", whole=(1, 2))


class Tile(NamedTuple):
    """What a program computes of a kernel's gradient.

    A frame of x meets the frame of the output's gradient that is as many taps before it. Windows
    of x, `taps` frames long, meet `shifts` frames of the gradient, each `taps` before the last:
    that is a product for shifts * taps taps.
    """

    shifts: int
    width: int  # outputs of a group with padding
    taps: int
    window: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.shifts * self.width, self.window


def plan_tile(taps: int, channels: int, outputs: int) -> Tile:
    """A program's part of a kernel's gradient, for a group's channels and outputs."""
    window = _power(min(taps * channels, max(channels, WINDOW)))
    width, at_once = _power(outputs), window // channels
    shifts = min(_power(pl.cdiv(taps, at_once), 1), max(1, OUTPUTS // width))
    return Tile(shifts, width, at_once, window)


@cache
def _correlation(taps: int, channels: int, interpret: bool) -> Any:
    """A function of x [B, T, C] and g [B, frames, D]: their kernel's gradient [K, C / G, D]."""

    def call(x: jax.Array, g: jax.Array) -> jax.Array:
        groups = x.shape[2] // channels
        own = g.shape[2] // groups
        tile, rows = plan_tile(taps, channels, own), math.gcd(len(x), ROWS)
        grid = len(x) // rows, groups, pl.cdiv(taps, tile.shifts * tile.taps)
        found = pl.pallas_call(
            partial(_correlate_kernel, channels=channels, own=own, left=taps // 2, tile=tile),
            grid=grid,
            in_specs=[
                pl.BlockSpec((rows, *each.shape[1:]), lambda b, g, i: (b, 0, 0)) for each in (x, g)
            ],
            out_specs=pl.BlockSpec((None, None, None, *tile.shape[::-1]), lambda *i: (*i, 0, 0)),
            out_shape=jax.ShapeDtypeStruct((*grid, *tile.shape[::-1]), jnp.float32),
            compiler_params=CORRELATE,
            interpret=interpret,
            name="grouped_conv_kernel_gradient",
        )(x, g).sum(axis=0)
        found = found[:, :, : tile.taps * channels]
        found = found.reshape(*grid[1:], tile.taps, channels, tile.shifts, tile.width)[..., :own]
        found = found.transpose(1, 4, 2, 3, 0, 5)  # programs, shifts, taps, C / G, G, D / G
        return found.reshape(-1, channels, groups * own)[:taps]

    return partition_batch(call, "b t c, b s d -> k i e", summed=(0,))


def _power(number: int, least: int = 16) -> int:
    return max(least, int(pl.next_power_of_2(number)))


def _steps(size: int, at_once: int) -> int:
    return -(-size // at_once)


def _convolve_kernel(
    x: Any, kernel: Any, bias: Any, output: Any, *, channels: int, own: int, left: int
) -> None:
    group, start = pl.program_id(1), pl.program_id(2) * FRAMES
    size, (frames, _) = kernel.shape[1], output.shape
    first = start - left + jnp.arange(FRAMES)
    outputs = jnp.arange(_power(own))[None]

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        places = i * PLACES + jnp.arange(PLACES)
        weights = _read(kernel, 0, places[:, None], group * own + outputs, outputs < own)
        windows = _windows(x, 0, first, places, group, channels, size)
        return total + triton.dot(weights, windows, trans_a=True, trans_b=True)

    place = bias.at[pl.ds(group * own, outputs.size)]
    start_from = triton.load(place, mask=outputs[0] < own, other=0).astype(jnp.float32)
    total = jnp.broadcast_to(start_from[:, None], (outputs.size, FRAMES))
    total = jax.lax.fori_loop(0, _steps(size, PLACES), add, total)
    is_frame = start + jnp.arange(FRAMES) < frames
    place = output.at[pl.ds(start, FRAMES), pl.ds(group * own, outputs.size)]
    triton.store(place, total.T.astype(output.dtype), mask=is_frame[:, None] & (outputs < own))


def _correlate_kernel(
    x: Any, g: Any, gradient: Any, *, channels: int, own: int, left: int, tile: Tile
) -> None:
    group, first_tap = pl.program_id(1), pl.program_id(2) * (tile.shifts * tile.taps)
    blocks = _steps(g.shape[1] + (tile.shifts - 1) * tile.taps, STEP)
    places = jnp.arange(tile.window)
    shifts, outputs = _divide(jnp.arange(tile.shape[0])[None], tile.width)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        row, block = _divide(i, blocks)
        frames = block * STEP + jnp.arange(STEP)
        before = frames[:, None] - shifts * tile.taps
        ours = _read(g, row, before, group * own + outputs, outputs < own)
        first = frames + first_tap - left
        windows = _windows(x, row, first, places, group, channels, tile.taps * channels)
        return total + triton.dot(ours, windows, trans_a=True)

    zeros = jnp.zeros(tile.shape, jnp.float32)
    gradient[...] = jax.lax.fori_loop(0, len(x) * blocks, add, zeros).T


def _windows(
    x: Any, row: Any, first: jax.Array, places: jax.Array, group: Any, channels: int, size: int
) -> jax.Array:
    """Places, of `size` that there are, of windows of x [., T, C] that start at some frames."""
    taps, here = _divide(places[None], channels)
    return _read(x, row, first[:, None] + taps, group * channels + here, places[None] < size)


def _read(x: Any, row: Any, frames: jax.Array, channels: jax.Array, real: jax.Array) -> jax.Array:
    """x[row, frames, channels], zeros where they are not real or x has no such frame."""
    inside = (frames >= 0) & (frames < x.shape[1]) & real
    frames, channels = (jnp.broadcast_to(each, inside.shape) for each in (frames, channels))
    return triton.load(x.at[row, frames, channels], mask=inside, other=0)


def _divide(number: Any, by: int) -> tuple[Any, Any]:
    """Quotient and rest of what is not negative; of others Triton does not see what is adjacent."""
    return jax.lax.div(number, jnp.int32(by)), jax.lax.rem(number, jnp.int32(by))
