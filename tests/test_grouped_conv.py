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
from jax import lax

from spidr_jax import grouped_conv_kernel
from spidr_jax.grouped_conv import grouped_conv


def plain(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Each group's convolution, frame by frame: a sum over the kernel's positions."""
    width, channels, features = kernel.shape
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    frames = padded.shape[1] - width + 1
    outputs = []
    for g in range(groups):
        own = padded[..., g * channels : (g + 1) * channels]
        weights = kernel[..., g * features // groups : (g + 1) * features // groups]
        taps = [
            jnp.matmul(own[:, k : k + frames], weights[k], precision=lax.Precision.HIGHEST)
            for k in range(width)
        ]
        outputs.append(sum(taps))
    return jnp.concatenate(outputs, axis=-1)


@pytest.mark.parametrize(("width", "groups"), [(5, 4), (4, 2), (3, 1)])
def test_value_and_gradients_are_those_of_the_sum(width: int, groups: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 11, 8))
    kernel = jax.random.normal(keys[1], (width, 8 // groups, 12))
    ours, ours_back = jax.vjp(grouped_conv, x, kernel)
    theirs, theirs_back = jax.vjp(lambda x, kernel: plain(x, kernel, groups), x, kernel)
    assert ours.shape == (3, 11 + (width % 2 == 0), 12)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    g = jax.random.normal(keys[2], ours.shape)
    for own, other in zip(ours_back(g), theirs_back(g), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "groups", "shape"),
    [(150, 4, (5, 6, 24)), (40, 1, (4, 20, 12)), (128, 2, (3, 16, 32))],
)
def test_the_gpu_kernels_compute_the_same(
    frames: int, groups: int, shape: tuple[int, int, int]
) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, frames, groups * shape[1]))
    kernel = jax.random.normal(keys[1], shape)
    value, back = jax.vjp(lambda x, kernel: plain(x, kernel, groups), x, kernel)
    g = jax.random.normal(keys[2], value.shape)
    found = grouped_conv_kernel.forward(x, kernel, interpret=True)
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-4)
    gradients = grouped_conv_kernel.gradients(x, kernel, g, interpret=True)
    for own, other in zip(gradients, back(g), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-3)


def test_bfloat16_stays() -> None:
    x, kernel = jnp.ones((2, 6, 4), jnp.bfloat16), jnp.ones((3, 2, 4), jnp.bfloat16)
    value, back = jax.vjp(grouped_conv, x, kernel)
    assert value.dtype == jnp.bfloat16
    assert [g.dtype for g in back(value)] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.slow
def test_a_compilation_cache_knows_the_step_for_several_devices_again(tmp_path: Path) -> None:
    manifest = tiny.write_corpus(tmp_path / "corpus")
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2",
    }
    for name in ("first", "second"):
        config = tiny.config(manifest, tmp_path / name)
        config.update(steps=1)
        config.data.update(planned_devices=2, max_batch_samples=16_000)
        command = [sys.executable, "-m", "spidr_jax.main", *tiny.flags(config)]
        subprocess.run(command, env=os.environ | variables, check=True, timeout=500)
        assert len(list((tmp_path / "cache").glob("jit_train_step-*-cache"))) == 1
