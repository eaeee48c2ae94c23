"""The grouped convolution: value and gradients on one device, and what a cache makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from spidr_jax.ops import reference
from spidr_jax.ops.grouped_conv import grouped_conv
from spidr_jax.ops.kernels import grouped_conv as grouped_conv_kernel


def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return reference.grouped_conv(x, kernel) + bias


@pytest.mark.parametrize(("width", "groups"), [(5, 4), (4, 2), (3, 1)])
def test_value_and_gradients_are_those_of_the_sum(width: int, groups: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (3, 11, 8))
    kernel = jax.random.normal(keys[1], (width, 8 // groups, 12))
    bias = jax.random.normal(keys[3], (12,))
    ours, ours_back = jax.vjp(grouped_conv, x, kernel, bias)
    theirs, theirs_back = jax.vjp(plain, x, kernel, bias)
    assert ours.shape == (3, 11 + (width % 2 == 0), 12)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    g = jax.random.normal(keys[2], ours.shape)
    for own, other in zip(ours_back(g), theirs_back(g), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "groups", "shape", "programs"),  # of a kernel gradient's taps
    [
        ((2, 150), 4, (5, 6, 24), 1),  # all taps in one window
        ((1, 40), 1, (4, 20, 12), 1),
        ((8, 128), 2, (3, 16, 32), 1),
        ((2, 127), 2, (19, 48, 96), 2),  # base's: 10 taps each
        ((3, 65), 2, (5, 100, 160), 3),  # 2 taps each
        ((2, 20), 1, (4, 300, 20), 1),  # a tap wider than windows
    ],
)
def test_the_gpu_kernels_compute_the_same(
    size: tuple[int, int], groups: int, shape: tuple[int, int, int], programs: int
) -> None:
    tile = grouped_conv_kernel.plan_tile(*shape[:2], shape[2] // groups)
    assert -(-shape[0] // (tile.shifts * tile.taps)) == programs
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (*size, groups * shape[1]))
    kernel = jax.random.normal(keys[1], shape)
    bias = jax.random.normal(keys[3], shape[2:])
    value, back = jax.vjp(plain, x, kernel, bias)
    g = jax.random.normal(keys[2], value.shape)
    found = grouped_conv_kernel.forward(x, kernel, bias, interpret=True)
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-4)
    gradients = grouped_conv_kernel.gradients(x, kernel, g, interpret=True)
    for own, other in zip(gradients, back(g)[:2], strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-3)


def test_bfloat16_stays() -> None:
    x, kernel = jnp.ones((2, 6, 4), jnp.bfloat16), jnp.ones((3, 2, 4), jnp.bfloat16)
    value, back = jax.vjp(grouped_conv, x, kernel, kernel[0, 0])
    assert value.dtype == jnp.bfloat16
    assert [g.dtype for g in back(value)] == [jnp.bfloat16] * 3


@pytest.mark.slow
def test_a_compilation_cache_knows_the_step_for_several_devices_again(tmp_path: Path) -> None:
    manifest = tiny.write_corpus(tmp_path / "corpus")
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
    }
    for name in ("first", "second"):
        config = tiny.config(manifest, tmp_path / name)
        config.update(steps=1)
        config.data.update(planned_devices=2, max_batch_samples=16_000)
        command = [sys.executable, "-m", "spidr_jax.main", *tiny.flags(config)]
        subprocess.run(command, env=os.environ | variables, check=True, timeout=500)
        assert len(list((tmp_path / "cache").glob("jit_train_step-*-cache"))) == 1
