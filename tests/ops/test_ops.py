"""Functions with own derivative rules against the reference: value and every gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from kernels_on_cpu import errors

from spidr_jax.ops import attention, dropout, reference
from spidr_jax.ops import norms as ops
from spidr_jax.ops.conv import conv

Arrays = list[jax.Array]
ROWS, FRAMES, WIDTH, HEADS = 3, 10, 24, 2
SEEDS = jax.random.bits(jax.random.key(9), (ROWS, 2), jnp.uint32)
MASK = jnp.arange(FRAMES) < jnp.array([10, 7, 1])[:, None]
X, HEAD = (ROWS, FRAMES, WIDTH), (ROWS, FRAMES, HEADS, WIDTH // HEADS)
AFFINE = [(WIDTH,), (WIDTH,)]
dropped = dropout.apply_dropout

# name: ours, plain, and the shapes of the arguments that have gradients
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "gelu": (ops.gelu, reference.gelu, [X]),
    "layer_norm": (ops.layer_norm, reference.layer_norm, [X, *AFFINE]),
    "layer_norm_gelu": (ops.layer_norm_gelu, reference.layer_norm_gelu, [X, *AFFINE]),
    "layer_norm_gelu without affine": (
        lambda x: ops.layer_norm_gelu(x, None, None),
        lambda x: reference.layer_norm_gelu(x, None, None),
        [X],
    ),
    "add_layer_norm": (
        lambda *a: ops.add_layer_norm(*a, SEEDS, 0.3),
        lambda r, x, *affine: reference.layer_norm(r + dropped(x, SEEDS, 0.3), *affine),
        [X, X, *AFFINE],
    ),
    "add_layer_norm without dropout": (
        lambda *a: ops.add_layer_norm(*a, None, 0.3),
        lambda r, x, *affine: reference.layer_norm(r + x, *affine),
        [X, X, *AFFINE],
    ),
    "dropout": (
        lambda x: dropout.dropout(x, SEEDS, 0.3),
        lambda x: dropped(x, SEEDS, 0.3),
        [X],
    ),
    "attention": (
        lambda *a: attention.attention(jnp.stack(a, 2), MASK, SEEDS, 0.3),
        lambda *a: reference.attention(jnp.stack(a, 2), MASK, SEEDS, 0.3),
        [HEAD] * 3,
    ),
    "attention without dropout": (
        lambda *a: attention.attention(jnp.stack(a, 2), None, None, 0.3),
        lambda *a: reference.attention(jnp.stack(a, 2), None, None, 0.3),
        [HEAD] * 3,
    ),
}


def draw(shapes: list[tuple[int, ...]], dtype: Any) -> Arrays:
    """Arguments away from zero mean; vectors (scale and bias) stay float32, as parameters are."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [0.3 + 1.5 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    return [x if x.ndim == 1 else x.astype(dtype) for x in arrays]


def value_and_gradients(function: Callable[..., jax.Array], arguments: Arrays) -> list[np.ndarray]:
    def run(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        value, pull = jax.vjp(function, *arguments)
        weights = jax.random.normal(jax.random.key(1), value.shape).astype(value.dtype)
        return value, *pull(weights)

    results = jax.jit(run)(*arguments)
    return [np.asarray(x, np.float64) for x in results]


@pytest.mark.parametrize("name", CASES)
def test_own_rules_equal_autodiff_in_float32(name: str) -> None:
    ours, plain_function, shapes = CASES[name]
    arguments = draw(shapes, jnp.float32)
    found = value_and_gradients(ours, arguments)
    expected = value_and_gradients(plain_function, arguments)
    assert len(found) == 1 + len(shapes)
    assert max(errors(found, expected)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_own_rules_are_as_exact_in_bfloat16_as_the_plain_functions(name: str) -> None:
    ours, plain_function, shapes = CASES[name]
    arguments = draw(shapes, jnp.bfloat16)
    truth = value_and_gradients(plain_function, [x.astype(jnp.float32) for x in arguments])
    found = value_and_gradients(ours, arguments)
    yardstick = value_and_gradients(plain_function, arguments)
    for mine, other in zip(errors(found, truth), errors(yardstick, truth), strict=True):
        assert mine <= 1.2 * other + 1e-4


def test_rules_keep_nothing_wider_than_their_input() -> None:
    x = jnp.ones(X, jnp.bfloat16)
    vector = jnp.ones(WIDTH)
    _, pull = jax.vjp(lambda x: ops.add_layer_norm(x, x, vector, vector, SEEDS, 0.3), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "shape", ()) == X]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


@pytest.mark.parametrize("name", ["layer_norm_gelu", "add_layer_norm"])
def test_rules_that_recompute_off_cpus_give_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _, shapes = CASES[name]
    arguments = draw(shapes, jnp.float32)
    expected = value_and_gradients(ours, arguments)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert max(errors(value_and_gradients(ours, arguments), expected)) < 1e-6
    gradient = jax.grad(lambda *arguments: ours(*arguments).sum(), range(len(arguments)))
    assert "optimization_barrier" in jax.jit(gradient).lower(*arguments).as_text()


@pytest.mark.parametrize(("width", "stride"), [(10, 5), (2, 2), (3, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("samples", [40, 43])
def test_convolution_as_a_product_equals_a_convolution(
    width: int, stride: int, samples: int
) -> None:
    def plain_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=layout)

    arguments = draw([(2, samples, 3), (width, 3, 4)], jnp.float32)
    found = value_and_gradients(lambda *a: conv(*a, None, stride, jnp.float32), arguments)
    assert max(errors(found, value_and_gradients(plain_convolution, arguments))) < 1e-6
