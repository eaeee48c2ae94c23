"""The norms' kernels, interpreted on the CPU, against the plain functions and autodiff."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.ops import dispatch as own_kernels
from spidr_jax.ops import dropout
from spidr_jax.ops import norms as ops
from spidr_jax.ops import reference as plain
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
    x = both[0] + dropout.drop(both[1], used, RATE)
    scale, bias = vectors or (None, None)
    y, *saved = norm_kernel.forward(x, scale, bias, gelu, interpret=True)
    found = norm_kernel.gradients(x, *saved, g, scale, bias, used, RATE, gelu, interpret=True)
    return y, *(each for each in found if each is not None)


def theirs(name: str, both: Arrays, vectors: Arrays, seeds: jax.Array, g: jax.Array) -> Arrays:
    gelu, _, dropped = CASES[name]

    def run(residual: jax.Array, x: jax.Array, *vectors: jax.Array) -> jax.Array:
        x = residual + dropout.drop(x, seeds if dropped else None, RATE)
        norm = plain.layer_norm_gelu if gelu else plain.layer_norm
        return norm(x, *(vectors or (None, None)))

    y, back = jax.vjp(run, *both, *vectors)
    return y, *back(g)


def errors(found: Arrays, truth: Arrays) -> list[float]:
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in zip(found, truth, strict=True)]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]


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


ON_TWO_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_norm_kernel import draw, ours

mesh = Mesh(np.array(jax.devices()), ("data",))
rows, whole = (NamedSharding(mesh, PartitionSpec(axes)) for axes in ("data", None))
both, vectors, seeds, g = draw(50, jnp.float32, True)
put = jax.device_put
arguments = put(both, rows), put(vectors, whole), put(seeds, rows), put(g, rows)
step = jax.jit(lambda *arrays: ours("dropout + LayerNorm", *arrays))
compiled = step.lower(*arguments).compile()
assert "all-gather" not in compiled.as_text()
for split, alone in zip(compiled(*arguments), step(both, vectors, seeds, g), strict=True):
    assert split.sharding.is_equivalent_to(rows if split.ndim == 3 else whole, split.ndim)
    np.testing.assert_allclose(split, alone, rtol=1e-5, atol=1e-5)
"""


def test_two_devices_compute_the_same_each_for_its_own_row() -> None:
    subprocess.run([sys.executable, "-c", ON_TWO_DEVICES], cwd=Path(__file__).parent, check=True)


def test_the_rules_give_the_kernel_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    both, vectors, seeds, g = draw(50, jnp.float32, True)

    def gradients() -> list[jax.Array]:
        dropped = jax.vjp(lambda *a: ops.add_layer_norm(*a, seeds, RATE), *both, *vectors)[1](g)
        bare = jax.vjp(lambda x: ops.layer_norm_gelu(x, None, None), both[0])[1](g)
        return [*dropped, *bare, *jax.vjp(ops.layer_norm, both[0], *vectors)[1](g)]

    expected, asked = gradients(), []

    def interpreted(*arguments: Any) -> Any:
        asked.append(arguments[7:])
        return norm_kernel.gradients(*arguments, interpret=True)

    forward = partial(norm_kernel.forward, interpret=True)
    stand_in = SimpleNamespace(forward=forward, gradients=interpreted)
    monkeypatch.setattr(own_kernels, "load", lambda *_: stand_in)
    for found, plainly in zip(gradients(), expected, strict=True):
        np.testing.assert_allclose(found, plainly, rtol=1e-5, atol=1e-5)
    assert asked == [(RATE, False), (0.0, True), (0.0, False)]
