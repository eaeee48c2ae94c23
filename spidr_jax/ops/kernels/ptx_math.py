"""Functions for kernels of our own, in as few of a GPU's instructions as they need.

Triton fuses no product with a sum that Pallas hands to it, and has neither erf nor a cheap
division: in PTX, NVIDIA's assembler, these take half of the instructions. Interpreted, JAX
computes the same formulas.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton

# The normal distribution beyond |x| is exp(-x^2 / 2) times a polynomial of 1 / (1 + _NEAR |x|),
# to 1e-7: coefficients from the highest power to the first. Abramowitz and Stegun, 7.1.26.
_NEAR = 0.3275911 * math.sqrt(0.5)
_SERIES = [0.5 * c for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]
_SQUARE = -0.5 * math.log2(math.e)  # exp(-x^2 / 2) is exp2 of so many x^2
_DENSITY = 1 / math.sqrt(2 * math.pi)


def fma(x: jax.Array, y: Any, z: Any, interpret: bool) -> jax.Array:
    """x y + z, of what can be broadcast to the shape of x."""
    if interpret:
        return x * y + z
    return _instructions("fma.rn.f32 $0, $1, $2, $3;", x, y, z)


def exp2(x: jax.Array, factor: float, less: Any, interpret: bool) -> jax.Array:
    """Two to the x factor - less; 0 for results below 2^-126."""
    if interpret:
        return jnp.exp2(x * factor - less)
    text = f"neg.f32 a, $2; fma.rn.f32 a, $1, {_word(factor)}, a; ex2.approx.ftz.f32 $0, a;"
    return _instructions(text, x, less)


def gelu(x: jax.Array, interpret: bool) -> jax.Array:
    """Exact GELU of finite x, to 1e-7: max(x, 0) less |x| times the distribution beyond |x|."""
    if interpret:
        series, power = _beyond(x)
        return jnp.maximum(x, 0) - jnp.abs(x) * power * series
    text = "mul.f32 s, s, p; neg.f32 s, s; max.f32 p, $1, 0f00000000; fma.rn.f32 $0, a, s, p;"
    return _instructions(_BEYOND + text, x)


def gelu_slope(x: jax.Array, interpret: bool) -> jax.Array:
    """The derivative of `gelu` at x, the distribution plus x times its density."""
    if interpret:
        series, power = _beyond(x)
        return 0.5 + jnp.copysign(0.5 + (jnp.abs(x) * _DENSITY - series) * power, x)
    text = (
        f"neg.f32 s, s; fma.rn.f32 s, a, {_word(_DENSITY)}, s; fma.rn.f32 s, s, p, 0f3F000000;"
        "copysign.f32 s, $1, s; add.f32 $0, s, 0f3F000000;"
    )
    return _instructions(_BEYOND + text, x)


def _beyond(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The polynomial, and exp(-x^2 / 2)."""
    near, series = 1 / (1 + _NEAR * jnp.abs(x)), jnp.zeros_like(x)
    for coefficient in _SERIES:
        series = (series + coefficient) * near
    return series, jnp.exp2(x * x * _SQUARE)


def _word(number: float) -> str:
    """A float32 in PTX."""
    return f"0f{np.float32(number).view(np.uint32):08X}"


# `_beyond` of $1: the polynomial in s, exp(-x^2 / 2) in p; and |x| in a.
_BEYOND = (
    f"abs.f32 a, $1; fma.rn.f32 n, a, {_word(_NEAR)}, 0f3F800000; rcp.approx.ftz.f32 n, n;"
    f"mul.f32 p, $1, $1; mul.f32 p, p, {_word(_SQUARE)}; ex2.approx.ftz.f32 p, p;"
    f"mov.f32 s, {_word(_SERIES[0])};"
    + "".join(f"fma.rn.f32 s, s, n, {_word(each)};" for each in _SERIES[1:])
    + "mul.f32 s, s, n;"
)


def _instructions(text: str, x: jax.Array, *others: Any) -> jax.Array:
    """Have PTX compute $0 of $1, $2, ..., elements of x and others.

    They and the registers a, n, p and s are float32.
    """
    (result,) = triton.elementwise_inline_asm(
        f"{{ .reg .f32 a, n, p, s; {text} }}",
        args=[x, *(jnp.broadcast_to(each, x.shape) for each in others)],
        constraints=",".join(["=f", "f", *"f" * len(others)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return result
