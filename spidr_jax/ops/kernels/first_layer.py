"""GELU of a product with few terms, and sums for its gradients, in kernels of our own for GPUs.

Such a product takes less time than reading its result: the backward pass computes it again, and
sums up what it needs of the slopes, which never leave the chip.

B rows, T frames, K terms, D channels, P programs a row.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops import reference
from spidr_jax.ops.kernels import ptx_math
from spidr_jax.ops.kernels.self_test import largest_error
from spidr_jax.ops.partition import partition_batch

FRAMES, CHANNELS = 64, 64  # that a program computes at a time
PROGRAMS = 384  # of the backward pass, about: three for each core of an H100
# The few terms are one product: there is no loop over them whose loads stages could overlap.
COMPILER = triton.CompilerParams(num_warps=4, num_stages=1)


def forward(x: jax.Array, weights: jax.Array, interpret: bool = False) -> jax.Array:
    """GELU of x @ weights, in their type, summed in float32.

    Args:
        x: [B, T, K].
        weights: [K, D].
        interpret: have JAX compute the kernels step by step, on any device, for tests.
    """
    return _forward_call(interpret)(*_pad(x, weights))


def gradients(
    x: jax.Array, weights: jax.Array, g: jax.Array, scaled: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The gradients of the weights, and of what x is scaled by.

    Args:
        x: [B, T, K].
        weights: [K, D].
        g: [B, T, D], gradient of the result.
        scaled: how many of the terms, from the first on, a frame's scale multiplies.
        interpret: as for `forward`.

    Returns:
        float32 [K, D]; and the gradient of the logarithm of each frame's scale, float32 [B, T].
    """
    sums, scales = _backward_call(scaled, interpret)(*_pad(x, weights), g)
    return sums[: len(weights)], scales


def self_test(dtype: Any, taps: int, channels: int, interpret: bool = False) -> float:
    """The largest relative error of the results on noise, for `taps` terms and two more."""
    draw = np.random.default_rng(0)
    terms = taps + 2
    x = draw.standard_normal((2, 30 * FRAMES + 5, terms)).astype(dtype)
    weights = (draw.standard_normal((terms, channels)) / np.sqrt(terms)).astype(dtype)
    g = draw.standard_normal((*x.shape[:2], channels)).astype(dtype)

    def compare(x: jax.Array, weights: jax.Array, g: jax.Array) -> Any:
        found = forward(x, weights, interpret), *gradients(x, weights, g, taps, interpret)
        wide = [each.astype(jnp.float32) for each in (x, weights, g)]
        value, back = jax.vjp(lambda x, weights: reference.gelu(x @ weights), *wide[:2])
        x_gradient, sums = back(wide[2])
        scales = (x_gradient * wide[0])[..., :taps].sum(axis=-1)
        return found, (value, sums, scales)

    return largest_error(compare, x, weights, g)


def _pad(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With terms of zeros, up to a number that tensor cores take."""
    more = max(16, int(pl.next_power_of_2(len(weights)))) - len(weights)
    return jnp.pad(x, ((0, 0), (0, 0), (0, more))), jnp.pad(weights, ((0, more), (0, 0)))


@cache
def _forward_call(interpret: bool) -> Any:
    def call(x: jax.Array, weights: jax.Array) -> jax.Array:
        (rows, frames, _), channels = x.shape, weights.shape[1]
        return pl.pallas_call(
            partial(_forward_kernel, interpret=interpret),
            grid=(rows, pl.cdiv(frames, FRAMES), pl.cdiv(channels, CHANNELS)),
            out_shape=jax.ShapeDtypeStruct((rows, frames, channels), x.dtype),
            compiler_params=COMPILER,
            interpret=interpret,
            name="first_layer_forward",
        )(x, weights)

    return partition_batch(call, "b t k, l d -> b u e", whole=(1,))


@cache
def _backward_call(scaled: int, interpret: bool) -> Any:
    def call(x: jax.Array, weights: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, frames, _ = x.shape
        chunks = pl.cdiv(weights.shape[1], CHANNELS)
        programs = min(max(PROGRAMS // (rows * chunks), 1), int(pl.cdiv(frames, FRAMES)))
        shapes = (rows, programs, *weights.shape), (rows, chunks, frames)
        sums, scales = pl.pallas_call(
            partial(_backward_kernel, scaled=scaled, interpret=interpret),
            grid=(rows, programs, chunks),
            out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
            compiler_params=COMPILER,
            interpret=interpret,
            name="first_layer_backward",
        )(x, weights, g)
        return sums.sum(axis=(0, 1)), scales.sum(axis=1)  # here: other devices have other programs

    return partition_batch(call, "b t k, l d, b u e -> m f, b s", whole=(1,), summed=(0,))


def _forward_kernel(x: Any, weights: Any, y: Any, *, interpret: bool) -> None:
    row, channels = pl.program_id(0), _channels(pl.program_id(2))
    frames = pl.program_id(1) * FRAMES + jnp.arange(FRAMES)
    terms = jnp.arange(len(weights))
    product = triton.dot(_load(x, row, frames, terms), _load(weights, terms, channels))
    _store(ptx_math.gelu(product, interpret), y, row, frames, channels)


def _backward_kernel(
    x: Any, weights: Any, g: Any, sums: Any, scales: Any, *, scaled: int, interpret: bool
) -> None:
    row, program, chunk = (pl.program_id(i) for i in range(3))
    terms, channels = jnp.arange(len(weights)), _channels(chunk)
    weights_here, programs = _load(weights, terms, channels), pl.num_programs(1)

    def step(i: jax.Array, total: jax.Array) -> jax.Array:
        frames = (i * programs + program) * FRAMES + jnp.arange(FRAMES)
        x_here = _load(x, row, frames, terms)
        slopes = ptx_math.gelu_slope(triton.dot(x_here, weights_here), interpret)
        slopes *= _load(g, row, frames, channels).astype(jnp.float32)
        slopes = slopes.astype(x.dtype)
        gradient = triton.dot(slopes, weights_here, trans_b=True) * x_here.astype(jnp.float32)
        gradient = jnp.where(terms < scaled, gradient, 0).sum(axis=1)
        triton.store(scales.at[row, chunk, frames], gradient, mask=frames < x.shape[1])
        return total + triton.dot(x_here, slopes, trans_a=True)

    blocks = pl.cdiv(pl.cdiv(x.shape[1], FRAMES) - program, programs)
    zeros = jnp.zeros((terms.size, CHANNELS), jnp.float32)
    _store(jax.lax.fori_loop(0, blocks, step, zeros), sums, row, program, terms, channels)


def _channels(chunk: Any) -> jax.Array:
    return chunk * CHANNELS + jnp.arange(CHANNELS)


def _load(ref: Any, *place: Any) -> jax.Array:
    """A tile, zeros where there is none; its place has an array for each of the last two axes."""
    place, real = _tile(ref, *place)
    return triton.load(ref.at[place], mask=real, other=0)


def _store(tile: jax.Array, ref: Any, *place: Any) -> None:
    place, real = _tile(ref, *place)
    triton.store(ref.at[place], tile.astype(ref.dtype), mask=real)


def _tile(ref: Any, *place: Any) -> tuple[tuple[Any, ...], jax.Array]:
    """The place of each element, and whether it is there."""
    *first, down, across = place
    down, across = jnp.broadcast_arrays(down[:, None], across[None])
    height, width = ref.shape[-2:]
    return (*first, down, across), (down < height) & (across < width)
