"""LayerNorm, with GELU after it or dropout before, and its backward pass as kernels for GPUs.

Each reads and writes its arrays once. XLA's backward pass reads them twice, and its GELU takes
longer than its memory traffic. B batch, T frames, D width, P programs an utterance.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops import reference
from spidr_jax.ops.dropout import apply_dropout, keep_mask_at
from spidr_jax.ops.kernels import ptx_math
from spidr_jax.ops.kernels.self_test import largest_error
from spidr_jax.ops.partition import partition_batch

PROGRAMS, FRAMES = 128, (8, 128)  # about so many an utterance, within these frames a program
WARPS = 2
Gradients = tuple[jax.Array | None, ...]
Row = jax.Array  # float32 [D], padded with zeros to a power of two, the only lengths in Triton


def forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    gelu: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """LayerNorm of x, or GELU of it.

    Args:
        x: [B, T, D].
        scale: float32 [D], or None.
        bias: float32 [D], or None.
        gelu: whether GELU follows the norm.
        interpret: have JAX compute the kernel step by step, on any device, for tests.

    Returns:
        The result, in the type of x; mean and inverse deviation of x, float32 [B, T].
    """
    call = _forward_call((scale is not None, bias is not None), gelu, interpret)
    y, mean, inverse = call(*(each for each in (x, scale, bias) if each is not None))
    return y, mean, inverse


def gradients(
    x: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    g: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    seeds: jax.Array | None,
    rate: float,
    gelu: bool,
    interpret: bool = False,
) -> Gradients:
    """Gradients of `forward`, and of dropout before it.

    Args:
        x: [B, T, D].
        mean: of x, as `forward` gives it.
        inverse: deviation of x, likewise.
        g: [B, T, D], gradient of the result.
        scale: float32 [D], or None.
        bias: float32 [D], or None.
        seeds: uint32 [B, 2] of the dropout of what was added to make x, as in `dropout`; or None.
        rate: of that dropout.
        gelu: whether GELU follows the norm.
        interpret: as for `forward`.

    Returns:
        The gradients of x, of what was dropped (that of x without seeds), of scale and of bias
        (None where there is none).
    """
    there = tuple(each is not None for each in (scale, bias, seeds))
    call = _backward_call(there, rate, gelu, interpret)
    arrays = (x, g, mean, inverse, scale, bias, seeds)
    found = iter(call(*(each for each in arrays if each is not None)))
    gradient = next(found)
    dropped = gradient if seeds is None else next(found)
    sums = [next(found).sum(axis=(0, 1)) if each else None for each in there[:2]]
    return gradient, dropped, *sums


@cache
def _forward_call(
    there: tuple[bool, bool], gelu: bool, interpret: bool
) -> Callable[..., list[jax.Array]]:
    """The kernel for those of scale and bias that are there."""
    scale, bias = there

    def call(*arrays: jax.Array) -> list[jax.Array]:
        x = arrays[0]
        scalars = jax.ShapeDtypeStruct(x.shape[:2], jnp.float32)
        kernel = partial(_forward_kernel, gelu=gelu, interpret=interpret)
        results = [x, scalars, scalars]
        return _run("norm_forward", kernel, (True, *there), arrays, results, interpret)

    rule = _rule((True, "b t d"), (scale, "f"), (bias, "h"))
    return partition_batch(call, f"{rule} -> b u e, b v, b w", range(1, 1 + scale + bias))


@cache
def _backward_call(
    there: tuple[bool, ...], rate: float, gelu: bool, interpret: bool
) -> Callable[..., list[jax.Array]]:
    """The kernel for those of scale, bias and seeds that are there."""
    scale, bias, seeds = there

    def call(*arrays: jax.Array) -> list[jax.Array]:
        x = arrays[0]
        sums = jax.ShapeDtypeStruct((x.shape[0], _programs(x), x.shape[2]), jnp.float32)
        kernel = partial(_backward_kernel, rate=rate, gelu=gelu, interpret=interpret)
        results = [x, x if seeds else None, sums if scale else None, sums if bias else None]
        return _run("norm_backward", kernel, (*[True] * 4, *there), arrays, results, interpret)

    inputs = _rule((True, "b t d, b u e, b a, b c"), (scale, "f"), (bias, "h"), (seeds, "b s"))
    outputs = _rule((True, "b v i"), (seeds, "b w j"), (scale, "b p k"), (bias, "b q l"))
    return partition_batch(call, f"{inputs} -> {outputs}", range(4, 4 + scale + bias))


def _rule(*axes: tuple[bool, str]) -> str:
    """The axes of those arrays that are there."""
    return ", ".join(names for there, names in axes if there)


def _programs(x: jax.Array) -> int:
    frames = x.shape[1]
    return int(pl.cdiv(frames, int(np.clip(frames // PROGRAMS, *FRAMES))))


def _run(
    name: str,
    kernel: Callable[..., None],
    there: tuple[bool, ...],
    arrays: tuple[jax.Array, ...],
    results: list[Any],
    interpret: bool,
) -> list[jax.Array]:
    """Run a kernel whose references are None for what is not there; x is the first array.

    Args:
        name: of the kernel.
        kernel: of all references.
        there: which of its arguments are.
        arrays: those arguments.
        results: the shapes of all results, None for those that are not there.
        interpret: as for `forward`.
    """
    x = arrays[0]
    present = *there, *(shape is not None for shape in results)

    def with_all(*refs: Any) -> None:
        each = iter(refs)
        kernel(*(next(each) if it else None for it in present))

    return pl.pallas_call(
        with_all,
        out_shape=[shape for shape in results if shape is not None],
        grid=(x.shape[0], _programs(x)),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name=name,
    )(*arrays)


def _forward_kernel(
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
        inverse = lax.rsqrt((centred * centred).sum() * share + reference.EPSILON)
        y = _affine(centred * inverse, scale, bias, interpret)
        y = ptx_math.gelu(y, interpret) if gelu else y
        triton.store(y_ref.at[*place, columns], y.astype(y_ref.dtype), mask=real)
        triton.store(means_ref.at[*place], mean)
        triton.store(inverses_ref.at[*place], inverse)
        return ()

    _each_frame((x_ref,), frame, ())


def _backward_kernel(
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

    The rows of the next frame are on their way meanwhile.

    Args:
        refs: [B, T, D], whose rows are loaded.
        compute: from the place (utterance, frame), its rows and a carry to the next carry.
        carry: the first.
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


def self_test(dtype: Any, width: int, interpret: bool = False) -> float:
    """Run the kernels on noise; the largest relative error of their results.

    Args:
        dtype: type of x.
        width: D.
        interpret: as for `forward`.
    """
    draw = np.random.default_rng(0)
    x, g = draw.standard_normal((2, 2, 70, width)).astype(dtype)
    scale, bias = 1 + 0.1 * draw.standard_normal((2, width)).astype(np.float32)
    seeds = draw.integers(2**32, size=(2, 2), dtype=np.uint32)

    def compare(x: Any, g: Any, scale: Any, bias: Any, seeds: Any) -> Any:
        def plain(x: jax.Array, dropped: jax.Array, *affine: jax.Array) -> jax.Array:
            return reference.layer_norm_gelu(x + apply_dropout(dropped, seeds, 0.1), *affine)

        y, mean, inverse = forward(x, scale, bias, True, interpret)
        rest = scale, bias, seeds, 0.1, True, interpret
        found = gradients(x, mean, inverse, g, *rest)
        expected, back = jax.vjp(plain, x, jnp.zeros_like(x), scale, bias)
        return [y, *found], [expected, *back(g)]

    return largest_error(compare, x, g, scale, bias, seeds)
