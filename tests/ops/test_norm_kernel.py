"""The norms' kernels, interpreted on the CPU, against the reference and autodiff."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from kernels_on_cpu import errors

from spidr_jax.ops import dropout, reference
from spidr_jax.ops.kernels import norms as norm_kernel

ROWS, WIDTH, RATE = 2, 24, 0.3
FRAMES = [1, 50]  # one program of a frame, four of unequally many
Arrays = tuple[jax.Array, ...]
# name: has GELU, has scale and bias, has dropout
CASES = {
    "LayerNorm": (False, True, False),
    "LayerNorm + GELU": (True, True, False),
    "LayerNorm + GELU without affine": (True, False, False),
    "dropout + LayerNorm": (False, True, True),
}


def draw(frames: int, dtype: Any, affine: bool) -> tuple[Arrays, Arrays, jax.Array, jax.Array]:
    """Residual and addend, scale and bias, seeds, and the gradient of the output."""
    keys = jax.random.split(jax.random.key(frames), 4)
    both = 0.3 + 1.5 * jax.random.normal(keys[0], (2, ROWS, frames, WIDTH))
    vectors = 0.3 + 1.5 * jax.random.normal(keys[1], (2, WIDTH))
    seeds = jax.random.bits(keys[2], (ROWS, 2), jnp.uint32)
    g = jax.random.normal(keys[3], (ROWS, frames, WIDTH))
    return tuple(both.astype(dtype)), tuple(vectors) if affine else (), seeds, g.astype(dtype)


@partial(jax.jit, static_argnums=0)
def ours(name: str, both: Arrays, vectors: Arrays, seeds: jax.Array, g: jax.Array) -> Arrays:
    gelu, _, dropped = CASES[name]
    used = seeds if dropped else None
    x = both[0] + dropout.apply_dropout(both[1], used, RATE)
    scale, bias = vectors or (None, None)
    y, *saved = norm_kernel.forward(x, scale, bias, gelu, interpret=True)
    found = norm_kernel.gradients(x, *saved, g, scale, bias, used, RATE, gelu, interpret=True)
    return y, *(each for each in found if each is not None)


def theirs(name: str, both: Arrays, vectors: Arrays, seeds: jax.Array, g: jax.Array) -> Arrays:
    gelu, _, dropped = CASES[name]

    def run(residual: jax.Array, x: jax.Array, *vectors: jax.Array) -> jax.Array:
        x = residual + dropout.apply_dropout(x, seeds if dropped else None, RATE)
        norm = reference.layer_norm_gelu if gelu else reference.layer_norm
        return norm(x, *(vectors or (None, None)))

    y, back = jax.vjp(run, *both, *vectors)
    return y, *back(g)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_autodiffs_in_float32(name: str, frames: int) -> None:
    arguments = draw(frames, jnp.float32, CASES[name][1])
    assert max(errors(ours(name, *arguments), theirs(name, *arguments))) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_exact_as_autodiff(name: str) -> None:
    both, vectors, seeds, g = arguments = draw(50, jnp.bfloat16, CASES[name][1])
    wide = tuple(x.astype(jnp.float32) for x in both)
    truth = theirs(name, wide, vectors, seeds, g.astype(jnp.float32))
    found, other = (errors(each(name, *arguments), truth) for each in (ours, theirs))
    assert all(mine <= 1.2 * theirs for mine, theirs in zip(found, other, strict=True))
