"""Which implementations are taken; there is no GPU here: JAX interprets their kernels."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_on_cpu import errors, interpreted

from spidr_jax.ops import platform, reference
from spidr_jax.ops.attention import attention
from spidr_jax.ops.conv import conv_norm_gelu
from spidr_jax.ops.dispatch import Kernel, select_kernel
from spidr_jax.ops.grouped_conv import grouped_conv
from spidr_jax.ops.kernels import cudnn_attention
from spidr_jax.ops.kernels import norms as norm_kernel
from spidr_jax.ops.norms import add_layer_norm, layer_norm, layer_norm_gelu

Use = Callable[[dict[str, Kernel]], None]
# what `select_kernel` is asked for beside the type
SHAPES: dict[str, tuple[Any, ...]] = {
    "attention": (16,),
    "first layer": (10, 24),
    "grouped convolution": ((5, 6, 12), 2),
    "norms": (24,),
}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if programs were for a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("name", SHAPES)
def test_a_kernel_that_agrees_is_taken_for_16_bits(name: str, kernels: Use, on_gpu: None) -> None:
    kernel = interpreted(name, "gpu", [jnp.bfloat16])
    kernels({name: kernel})
    inside = []

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:  # as the training step's trace asks
        inside.append(select_kernel(name, jnp.bfloat16, *SHAPES[name]))
        return x

    traced(jnp.zeros(()))
    assert inside == [kernel.module]
    assert select_kernel(name, jnp.float32, *SHAPES[name]) is None


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        (
            "attention",
            (reference, "attention"),
            lambda qkv, mask, seeds, rate, real=reference.attention: real(
                qkv, mask, None if seeds is None else seeds + 1, rate
            ),
        ),
        ("first layer", (reference, "gelu"), jax.nn.relu),
        (
            "grouped convolution",
            (reference, "grouped_conv"),
            lambda x, kernel, real=reference.grouped_conv: real(x.at[:, -40:].set(0), kernel),
        ),
        ("norms", (norm_kernel, "apply_dropout"), lambda x, seeds, rate: x),
    ],
)
def test_a_kernel_that_computes_something_else_is_not_taken(
    name: str,
    part: tuple[Any, str],
    wrong: Any,
    kernels: Use,
    on_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(*part, wrong)
    kernels({name: interpreted(name, "gpu")})
    assert select_kernel(name, jnp.bfloat16, *SHAPES[name]) is None
    assert capsys.readouterr().out.startswith(f"no kernel for {name}: its results are off by ")


def test_a_described_device_takes_kernels_without_a_run(kernels: Use) -> None:
    kernel = interpreted("norms", "gpu")
    kernels({"norms": kernel._replace(module=SimpleNamespace())})  # type: ignore[arg-type]
    with platform.target_platform("gpu"):
        assert select_kernel("norms", jnp.bfloat16, 24)


def test_kernels_that_do_not_run_are_said_once_and_replaced(
    kernels: Use, on_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernels for GPUs, and cuDNN, on a CPU."""
    qkv = jax.random.normal(jax.random.key(0), (2, 5, 3, 2, 16), jnp.bfloat16)
    for _ in range(2):
        found = attention(qkv, None, None, 0.0)
    expected = reference.attention(qkv, None, None, 0.0)
    assert errors([found], [expected])[0] < 0.02
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "no kernel for attention",
        "no kernel for attention without dropout",
    ]


# A version of JAX without Pallas' backend for Triton, on what looks like a GPU.
WITHOUT_TRITON = """
import sys
sys.modules["jax.experimental.pallas.triton"] = None
import jax, jax.numpy as jnp
jax.default_backend = lambda: "gpu"
from spidr_jax.ops.attention import attention
from spidr_jax.ops.norms import layer_norm_gelu
attention(jnp.ones((2, 5, 3, 2, 16), jnp.bfloat16), None, jnp.ones((2, 2), jnp.uint32), 0.3)
layer_norm_gelu(jnp.ones((2, 5, 16), jnp.bfloat16), None, None)
"""


def test_without_pallas_backend_for_gpus_a_run_starts_and_says_so_once() -> None:
    command = [sys.executable, "-c", WITHOUT_TRITON]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.count("\n") == 1
    assert said.startswith("no kernels of our own: ")
    assert "triton" in said


MASK = jnp.arange(9) < jnp.array([9, 4])[:, None]
SEEDS = jnp.array([[1, 2], [3, 4]], jnp.uint32)
X, AFFINE = (2, 9, 24), [(24,), (24,)]
# operation's kernel, function, shapes of its arguments
CALLS: dict[str, tuple[str, Callable[..., jax.Array], list[tuple[int, ...]]]] = {
    "attention": ("attention", lambda x: attention(x, MASK, SEEDS, 0.3), [(2, 9, 3, 2, 16)]),
    "bare attention": ("attention", lambda x: attention(x, None, None, 0.3), [(2, 9, 3, 2, 16)]),
    "first layer": (
        "first layer",
        lambda x, kernel, *affine: conv_norm_gelu(x, kernel, None, *affine, 5, jnp.float32),
        [(2, 103, 1), (10, 1, 24), *AFFINE],
    ),
    "grouped convolution": ("grouped convolution", grouped_conv, [X, (5, 12, 24), (24,)]),
    "add_layer_norm": ("norms", lambda *a: add_layer_norm(*a, SEEDS, 0.3), [X, X, *AFFINE]),
    "layer_norm": ("norms", layer_norm, [X, *AFFINE]),
    "layer_norm_gelu": ("norms", lambda x: layer_norm_gelu(x, None, None), [X]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_for_another_backend_is_an_entry(name: str, kernels: Use) -> None:
    """Operations give their kernels what these take, value and gradients."""
    operation, function, shapes = CALLS[name]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arguments = [0.3 + jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]

    def results() -> list[jax.Array]:
        value, back = jax.vjp(function, *arguments)
        return [value, *back(value)]

    kernel, asked = interpreted(operation), []

    def recorded(name: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        return getattr(kernel.module, name)(*args, **kwargs)

    names = vars(kernel.module)
    module: Any = SimpleNamespace(**{name: partial(recorded, name) for name in names})
    expected = results()
    kernels({operation: kernel._replace(module=module)})
    assert max(errors(results(), expected)) < 2e-5
    assert set(asked) == set(names)


def test_cudnn_attends_where_nothing_is_dropped(
    kernels: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA's own attention stands in for cuDNN's, of the same interface."""
    asked = []
    real = jax.nn.dot_product_attention

    def stand_in(*arguments: jax.Array, implementation: str, **options: Any) -> jax.Array:
        asked.append(implementation)
        return real(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    only = Kernel(cudnn_attention, "cpu", (jnp.float32,))
    kernels({"attention without dropout": only})
    qkv = jax.random.normal(jax.random.key(0), (2, 9, 3, 2, 16))
    for frame_mask, seeds, rate in ((None, None, 0.3), (MASK, SEEDS, 0.0)):
        found = attention(qkv, frame_mask, seeds, rate)
        expected = reference.attention(qkv, frame_mask, None, 0.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert asked == ["cudnn"] * 4  # two of its trial
    attention(qkv, None, SEEDS, 0.3)
    assert len(asked) == 4  # never with dropout
