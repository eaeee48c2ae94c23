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
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from spidr_jax.ops import reference
from spidr_jax.ops.dropout import apply_dropout
from spidr_jax.ops.kernels.norm_frames import backward_kernel, forward_kernel
from spidr_jax.ops.kernels.self_test import largest_error
from spidr_jax.ops.partition import partition_batch

# Programs an utterance, about, and within these limits the frames of each: enough programs for all
# cores, of so many frames that loading scale and bias and storing their sums costs little.
PROGRAMS, FRAMES = 128, (8, 128)
# An earlier kernel's backward pass of base's first layer took 1.78 ms on an H100, 2.08 with 1 warp,
# 1.89 with 4.
WARPS = 2
Gradients = tuple[jax.Array | None, ...]


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
        kernel = partial(forward_kernel, gelu=gelu, interpret=interpret)
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
        kernel = partial(backward_kernel, rate=rate, gelu=gelu, interpret=interpret)
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

    Arrays are those of its arguments that are `there`; a result that is not has no shape.
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


def self_test(dtype: Any, width: int, interpret: bool = False) -> float:
    """The largest relative error of the results on noise, for arrays of a width D."""
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
