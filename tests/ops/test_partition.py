"""Kernels on two devices: each computes its own rows, and only sums are communicated."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import test_attention_kernel
import test_first_layer
import test_norm_kernel
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kernels_on_cpu import interpreted

from spidr_jax.ops import dispatch
from spidr_jax.ops.kernels import grouped_conv


def check(function: Any, arguments: tuple[Any, ...], split: str, results: str) -> None:
    """Compare with one device's; "r" in `split` and `results` stands for rows, "w" for whole."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    kinds = {"r": PartitionSpec("data"), "w": PartitionSpec()}
    placed = [
        jax.device_put(x, NamedSharding(mesh, kinds[kind]))
        for x, kind in zip(arguments, split, strict=True)
    ]
    step = jax.jit(function)
    compiled = step.lower(*placed).compile()
    assert "all-gather" not in compiled.as_text()
    found, alone = compiled(*placed), step(*arguments)
    for own, expected, kind in zip(found, alone, results, strict=True):
        assert own.sharding.is_equivalent_to(NamedSharding(mesh, kinds[kind]), own.ndim)
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-4)


def main() -> None:
    """Check all kernels, where there are two devices."""
    arguments = test_attention_kernel.draw(64, jnp.float32)
    attend = partial(test_attention_kernel.ours, rate=0.3)
    check(attend, arguments, "rrrr", "rr")

    norm = partial(test_norm_kernel.ours, "dropout + LayerNorm")
    check(norm, test_norm_kernel.draw(50, jnp.float32, True), "rwrr", "rrrww")

    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(key, (4, 9, 12)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (5, 6, 12))
    check(partial(grouped_conv.gradients, interpret=True), (x, kernel, g), "rwr", "rw")

    dispatch.IMPLEMENTATIONS = {"first layer": (interpreted("first layer"),)}
    waveforms, weights, g = test_first_layer.draw(test_first_layer.SIZES[0])
    run = partial(test_first_layer.run, test_first_layer.ours)
    layer = lambda *arrays: run(*arrays, 5, jnp.float32)  # noqa: E731
    check(layer, (waveforms, weights, g), "rwr", "rwww")


def test_two_devices_compute_the_same_each_for_its_own_rows() -> None:
    script = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2); import test_partition as t;"
        "t.main()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=True)
