"""What a program of the norms' kernels computes: some frames of an utterance.

B batch, T frames, D width, P programs an utterance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops.dropout import keep_mask_at
from spidr_jax.ops.kernels import ptx_math
from spidr_jax.ops.reference import EPSILON

Row = jax.Array  # float32 [D], padded with zeros to a power of two, the only lengths in Triton


def forward_kernel(
    x_ref: Any,  # [B, T, D], and so y
    scale_ref: Any,
    bias_ref: Any,
    y_ref: Any,
    means_ref: Any,  # [B, T], and so inverses
    inverses_ref: Any,
    *,
    gelu: bool,
    interpret: bool,
) -> None:
    columns, real = _columns(x_ref)
    scale, bias = _load(scale_ref), _load(bias_ref)
    share = 1 / x_ref.shape[2]

    def frame(place: Any, rows: tuple[Row, ...], _: Any) -> tuple[()]:
        (x,) = rows
        mean = x.sum() * share
        centred = jnp.where(real, x - mean, 0)
        inverse = lax.rsqrt((centred * centred).sum() * share + EPSILON)
        y = _affine(centred * inverse, scale, bias, interpret)
        y = ptx_math.gelu(y, interpret) if gelu else y
        triton.store(y_ref.at[*place, columns], y.astype(y_ref.dtype), mask=real)
        triton.store(means_ref.at[*place], mean)
        triton.store(inverses_ref.at[*place], inverse)
        return ()

    _each_frame((x_ref,), frame, ())


def backward_kernel(
    x_ref: Any,  # [B, T, D], and so g, gradient and dropped
    g_ref: Any,
    means_ref: Any,  # [B, T], and so inverses
    inverses_ref: Any,
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
    interpret: bool,
) -> None:
    columns, real = _columns(x_ref)
    scale, bias = _load(scale_ref), _load(bias_ref)
    here = pl.program_id(0), pl.program_id(1)
    seeds = None if seeds_ref is None else (seeds_ref[here[0], 0], seeds_ref[here[0], 1])
    share = 1 / x_ref.shape[2]

    def frame(place: Any, rows: tuple[Row, ...], sums: tuple[Row, Row]) -> tuple[Row, Row]:
        x, g = rows
        inverse = triton.load(inverses_ref.at[*place])
        standard = jnp.where(real, (x - triton.load(means_ref.at[*place])) * inverse, 0)
        if gelu:
            g *= ptx_math.gelu_slope(_affine(standard, scale, bias, interpret), interpret)
        sums = ptx_math.fma(g, standard, sums[0], interpret), sums[1] + g
        g = g if scale is None else g * scale
        means = g.sum() * share, (g * standard).sum() * share
        gradient = inverse * ptx_math.fma(standard, -means[1], g - means[0], interpret)
        gradient = gradient.astype(gradient_ref.dtype)
        triton.store(gradient_ref.at[*place, columns], gradient, mask=real)
        if seeds is not None:
            index = (place[1] * x_ref.shape[2] + columns).astype(jnp.uint32)
            scaled = (gradient.astype(jnp.float32) * (1 / (1 - rate))).astype(gradient.dtype)
            kept = jnp.where(keep_mask_at(index, *seeds, rate), scaled, 0)
            triton.store(dropped_ref.at[*place, columns], kept, mask=real)
        return sums

    zeros = jnp.zeros(columns.shape, jnp.float32)
    sums = _each_frame((x_ref, g_ref), frame, (zeros, zeros))
    for ref, each in zip((scale_sums_ref, bias_sums_ref), sums, strict=True):
        if ref is not None:
            triton.store(ref.at[*here, columns], each, mask=real)


def _columns(ref: Any) -> tuple[jax.Array, jax.Array]:
    """The places of a row's elements, and which of them are no padding."""
    columns = jnp.arange(pl.next_power_of_2(ref.shape[-1]))
    return columns, columns < ref.shape[-1]


def _load(ref: Any) -> Row | None:
    if ref is None:
        return None
    columns, real = _columns(ref)
    return triton.load(ref.at[columns], mask=real, other=0)


def _each_frame(refs: tuple[Any, ...], compute: Callable[..., Any], carry: Any) -> Any:
    """Have a program compute its frames, every P-th of an utterance.

    The rows of the next frame, of each of refs [B, T, D], are on their way meanwhile. From its
    place (utterance, frame), its rows and a carry, `compute` gives the next carry.
    """
    columns, real = _columns(refs[0])
    row, program, programs = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    frames = refs[0].shape[1]

    def load(frame: Any) -> tuple[jax.Array, ...]:
        mask = real & (frame < frames)
        return tuple(triton.load(ref.at[row, frame, columns], mask=mask, other=0) for ref in refs)

    def step(i: jax.Array, carry: Any) -> Any:
        rows, kept = carry
        frame = i * programs + program
        following = load(frame + programs)
        wide = tuple(each.astype(jnp.float32) for each in rows)
        return following, compute((row, frame), wide, kept)

    return lax.fori_loop(0, pl.cdiv(frames - program, programs), step, (load(program), carry))[1]


def _affine(x: Row, scale: Row | None, bias: Row | None, interpret: bool) -> Row:
    if scale is not None and bias is not None:
        return ptx_math.fma(x, scale, bias, interpret)
    x = x if scale is None else x * scale
    return x if bias is None else x + bias
