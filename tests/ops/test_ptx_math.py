"""What kernels for GPUs compute with: the formulas that JAX interprets, and their PTX, run here."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import triton

from spidr_jax.ops.kernels import ptx_math

X = np.concatenate([np.linspace(-12, 12, 4801), [0.0, -0.0, 1e-30, -1e-30, 100, -100]])
X = X.astype(np.float32)
Y, Z = X[::-1].copy(), np.cos(X)
FUNCTIONS: dict[str, Callable[[bool], jax.Array]] = {
    "fma": lambda interpret: ptx_math.fma(jnp.asarray(X), Y, Z, interpret),
    "exp2": lambda interpret: ptx_math.exp2(jnp.asarray(X), 1.2, Z, interpret),
    "gelu": lambda interpret: ptx_math.gelu(jnp.asarray(X), interpret),
    "gelu_slope": lambda interpret: ptx_math.gelu_slope(jnp.asarray(X), interpret),
}
# Source: NVIDIA's PTX ISA, "Floating-Point Instructions"
PTX: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "copysign": lambda sign, size: np.copysign(size, sign),
    "ex2.approx.ftz": np.exp2,
    "fma.rn": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "max": np.maximum,
    "mov": lambda a: a,
    "mul": np.multiply,
    "neg": np.negative,
    "rcp.approx.ftz": np.reciprocal,
}


def run_ptx(asm: str, *, args: Any, constraints: str, **_: Any) -> list[jax.Array]:
    """Compute what a few instructions do with arrays of float32."""
    assert constraints == "=f" + ",f" * len(args)
    values: dict[str, Any] = {f"${i}": np.asarray(each) for i, each in enumerate(args, 1)}
    match = re.fullmatch(r"\{ \.reg \.f32 ([\w, ]+); (.*) \}", asm)
    assert match
    registers = {*match[1].split(", "), "$0"}
    for line in match[2].strip("; ").split(";"):
        name, _, places = line.strip().partition(" ")
        result, *operands = places.split(", ")
        assert result in registers
        found = [
            np.uint32(int(each[2:], 16)).view(np.float32) if each[:2] == "0f" else values[each]
            for each in operands
        ]
        values[result] = PTX[name.removesuffix(".f32")](*found)
    return [jnp.asarray(values["$0"])]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_instructions_compute_the_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FUNCTIONS[name](True)
    monkeypatch.setattr(triton, "elementwise_inline_asm", run_ptx)
    found = FUNCTIONS[name](False)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gelu_and_its_slope_are_exact() -> None:
    def exact(x: jax.Array) -> jax.Array:
        return 0.5 * x * jax.lax.erfc(-x * np.sqrt(0.5))

    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        value, slope = exact(x), jax.vmap(jax.grad(exact))(x)
    np.testing.assert_allclose(FUNCTIONS["gelu"](True), value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(FUNCTIONS["gelu_slope"](True), slope, rtol=1e-6, atol=1e-6)
