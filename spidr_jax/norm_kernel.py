"""The backward pass of LayerNorm, with what is around it, as one kernel for GPUs.

It reads x and the gradient once and writes their gradient once; XLA reads both twice, and x twice
more for the statistics. B batch, T frames, D width, P programs an utterance.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.by_rows import by_rows
from spidr_jax.dropout import keep_at
from spidr_jax.own_kernels import difference, run_now

EPSILON = 1e-5
PROGRAMS, FRAMES = 128, (16, 128)  # about so many an utterance, within these frames a program
Gradients = tuple[jax.Array | None, ...]


def gradients(
    x: jax.Array,
    g: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
    gelu: bool,
    interpret: bool = False,
) -> Gradients:
    """Gradients of LayerNorm of x, or of GELU of it, given that of the output.

    Args:
        x: [B, T, D].
        g: [B, T, D], gradient of the output.
        scale: float32 [D], or None.
        bias: float32 [D], or None.
        seeds: uint32 [B, 2] of the dropout of what was added to make x, as in `dropout`; or None.
        rate: of that dropout.
        gelu: whether GELU follows the norm.
        interpret: have JAX compute the kernel step by step, on any device, for tests.

    Returns:
        The gradients of x, of what was dropped (that of x without seeds), of scale and of bias
        (None where there is none).
    """
    arrays = (x, g, scale, bias, seeds)
    there = tuple(each is not None for each in arrays)
    call = _call(there, rate, gelu, interpret)
    found = iter(call(*(each for each in arrays if each is not None)))
    gradient = next(found)
    dropped = gradient if seeds is None else next(found)
    sums = [next(found).sum(axis=(0, 1)) if each else None for each in there[2:4]]
    return gradient, dropped, *sums


@cache
def _call(
    there: tuple[bool, ...], rate: float, gelu: bool, interpret: bool
) -> Callable[..., list[jax.Array]]:
    """The kernel for those of x, g, scale, bias and seeds that are there, for a device's rows."""
    _, _, scale, bias, seeds = there
    results = (True, seeds, scale, bias)

    def call(*arrays: jax.Array) -> list[jax.Array]:
        x = arrays[0]
        batch, frames, width = x.shape
        programs = pl.cdiv(frames, int(np.clip(frames // PROGRAMS, *FRAMES)))
        sums = jax.ShapeDtypeStruct((batch, programs, width), jnp.float32)
        shapes = (x, x, sums, sums)

        def kernel(*refs: Any) -> None:
            each = iter(refs)
            all_refs = (next(each) if it else None for it in (*there, *results))
            _kernel(*all_refs, rate=rate, gelu=gelu)

        return pl.pallas_call(
            kernel,
            out_shape=[shape for shape, it in zip(shapes, results, strict=True) if it],
            grid=(batch, programs),
            compiler_params=triton.CompilerParams(num_warps=1),
            interpret=interpret,
            name="norm_backward",
        )(*arrays)

    def axes(*rules: str, there: tuple[bool, ...]) -> str:
        return ", ".join(rule for rule, it in zip(rules, there, strict=True) if it)

    inputs = axes("b t d", "b u e", "f", "h", "b s", there=there)
    outputs = axes("b v i", "b w j", "b p k", "b q l", there=results)
    whole = range(2, 2 + scale + bias)
    return by_rows(call, f"{inputs} -> {outputs}", whole)


def _kernel(
    x_ref: Any,  # [B, T, D], and so g, gradient and dropped
    g_ref: Any,
    scale_ref: Any,
    bias_ref: Any,
    seeds_ref: Any,
    gradient_ref: Any,
    dropped_ref: Any,
    scale_sums_ref: Any,  # [B, P, D], and so bias_sums
    bias_sums_ref: Any,
    *,
    rate: float,
    gelu: bool,
) -> None:
    """Go over every P-th frame of an utterance."""
    _, frames, width = x_ref.shape
    row, program, programs = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    columns = jnp.arange(pl.next_power_of_2(width))  # the only lengths that Triton has
    real = columns < width

    def load(ref: Any, *place: Any) -> Any:
        if ref is None:
            return None
        return triton.load(ref.at[*place, columns], mask=real, other=0).astype(jnp.float32)

    def mean(x: jax.Array) -> jax.Array:
        return x.sum() * (1 / width)

    scale, bias = load(scale_ref), load(bias_ref)
    seeds = None if seeds_ref is None else (seeds_ref[row, 0], seeds_ref[row, 1])

    def frame(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        place = row, i * programs + program
        x, g = load(x_ref, *place), load(g_ref, *place)
        centred = jnp.where(real, x - mean(x), 0)
        inverse = lax.rsqrt(mean(centred * centred) + EPSILON)
        standard = centred * inverse
        if gelu:
            y = standard if scale is None else standard * scale
            g *= _gelu_slope(y if bias is None else y + bias)
        sums = sums[0] + g * standard, sums[1] + g
        g = g if scale is None else g * scale
        gradient = inverse * (g - mean(g) - standard * mean(g * standard))
        gradient = gradient.astype(gradient_ref.dtype)
        triton.store(gradient_ref.at[*place, columns], gradient, mask=real)
        if seeds is not None:
            index = (place[1] * width + columns).astype(jnp.uint32)
            share = (gradient.astype(jnp.float32) / (1 - rate)).astype(gradient.dtype)
            kept = jnp.where(keep_at(index, *seeds, rate), share, 0)
            triton.store(dropped_ref.at[*place, columns], kept, mask=real)
        return sums

    zeros = jnp.zeros(columns.shape, jnp.float32)
    sums = lax.fori_loop(0, pl.cdiv(frames - program, programs), frame, (zeros, zeros))
    for ref, each in zip((scale_sums_ref, bias_sums_ref), sums, strict=True):
        if ref is not None:
            triton.store(ref.at[row, program, columns], each, mask=real)


def _gelu_slope(x: jax.Array) -> jax.Array:
    """GELU's derivative at float32 x, to 3e-7, without erf, which Pallas' Triton lacks.

    Source: Abramowitz and Stegun, 7.1.26, for the normal distribution function.
    """
    power = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * jnp.abs(x))
    series = t * 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + coefficient) * t
    tail = 0.5 * series * power  # of the distribution, beyond |x|
    return jnp.where(x < 0, tail, 1 - tail) + x * power * (1 / math.sqrt(2 * math.pi))


def largest_error(
    width: int, dtype: Any, plain: Callable[..., Any], interpret: bool = False
) -> float:
    """Run the kernel on noise; the largest relative error of its results.

    Args:
        width: D.
        dtype: of x.
        plain: what it should compute, with its arguments but for the last.
        interpret: as for `gradients`.
    """
    draw = np.random.default_rng(0)
    x, g = draw.standard_normal((2, 2, 70, width)).astype(dtype)
    scale, bias = 1 + 0.1 * draw.standard_normal((2, width)).astype(np.float32)
    seeds = draw.integers(2**32, size=(2, 2), dtype=np.uint32)

    def error(x: Any, g: Any, scale: Any, bias: Any, seeds: Any) -> jax.Array:
        found: Any = gradients(x, g, scale, bias, seeds, 0.1, True, interpret)
        expected = plain(x, g, scale, bias, seeds, 0.1, True)
        return difference(found, expected)

    return run_now(error, x, g, scale, bias, seeds)
