"""Kernels of our own are taken where they run and are right; there is no GPU: JAX interprets."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.ops import attention, dropout, grouped_conv
from spidr_jax.ops import dispatch as own_kernels
from spidr_jax.ops import norms as ops
from spidr_jax.ops import reference as plain
from spidr_jax.ops.kernels import attention as attention_kernel
from spidr_jax.ops.kernels import first_layer as first_layer_kernel
from spidr_jax.ops.kernels import grouped_conv as conv_kernel
from spidr_jax.ops.kernels import norms as norm_kernel
from spidr_jax.ops.kernels import ptx_math as kernel_math

KERNEL = 5, 6, 12  # taps, channels of a group, outputs: of two groups
# name, and what `load` is asked for beside the type
KERNELS: dict[str, tuple[Any, ...]] = {
    "attention": ("attention", 16, attention._attention),
    "convolution": ("grouped_conv", KERNEL, 2, grouped_conv._plain),
    "norms": ("norms", 24, ops._plain),
    "first layer": ("first_layer", 10, 24),
}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if programs were for a GPU, one that runs no kernel."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    yield
    for each in (own_kernels.load, attention.flash_runs):
        each.cache_clear()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch, on_gpu: None) -> Iterator[None]:
    """As if there were a GPU that runs kernels."""
    for module in (attention_kernel, conv_kernel, norm_kernel, first_layer_kernel):
        check = module.largest_error
        monkeypatch.setattr(
            module, "largest_error", lambda *a, check=check: check(*a, interpret=True)
        )
    yield
    for each in (
        attention_kernel._calls,
        conv_kernel._convolution,
        conv_kernel._correlation,
        norm_kernel._forward_call,
        norm_kernel._backward_call,
        first_layer_kernel._forward_call,
        first_layer_kernel._backward_call,
    ):
        each.cache_clear()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_agrees_is_taken_for_16_bits(name: str, interpreted: None) -> None:
    module, *arguments = KERNELS[name]
    inside = []

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:  # as the training step's trace asks
        inside.append(own_kernels.load(name, module, jnp.bfloat16, *arguments))
        return x

    traced(jnp.zeros(()))
    assert inside[0].__name__ == f"spidr_jax.ops.kernels.{module}"
    assert own_kernels.load(name, module, jnp.float32, *arguments) is None


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        (
            "attention",
            (attention_kernel, "keep_pairs"),
            lambda q, *a: dropout.keep_pairs(q + 2, *a),
        ),
        ("norms", (norm_kernel, "keep_at"), lambda i, *a: dropout.keep_at(i + 1, *a)),
        ("first layer", (kernel_math, "gelu_slope"), kernel_math.gelu),
    ],
)
def test_a_kernel_with_another_dropout_mask_or_slope_is_not_taken(
    name: str,
    part: tuple[Any, str],
    wrong: Any,
    interpreted: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(*part, wrong)
    module, *arguments = KERNELS[name]
    assert own_kernels.load(name, module, jnp.bfloat16, *arguments) is None
    said = capsys.readouterr().out
    assert said.startswith(f"{name} without a kernel of its own: its results are off by 0.")


def test_a_kernel_that_leaves_out_the_last_block_is_not_taken(
    interpreted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conv_kernel, "_steps", lambda size, at_once: max(1, size // at_once))
    module, *arguments = KERNELS["convolution"]
    assert own_kernels.load("convolution", module, jnp.bfloat16, *arguments) is None
    assert "its results are off by 0." in capsys.readouterr().out


def test_kernels_that_do_not_run_are_said_once_and_replaced(
    on_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    qkv = jnp.asarray(draw.standard_normal((2, 5, 3, 2, 16)), jnp.bfloat16)
    seeds = jnp.asarray(draw.integers(2**32, size=(2, 2)), jnp.uint32)
    x = jnp.asarray(draw.standard_normal((2, 7, 12)), jnp.bfloat16)
    kernel = jnp.asarray(draw.standard_normal(KERNEL), jnp.bfloat16)
    bias = jnp.asarray(draw.standard_normal(KERNEL[2]), jnp.bfloat16)
    for _ in range(2):
        attended = attention.attention(qkv, None, seeds, 0.3)
        convolved, back = jax.vjp(grouped_conv.grouped_conv, x, kernel, bias)
        back(convolved)
    q, k, v = (qkv[:, :, i] for i in range(3))
    for found, expected in (
        (attended, plain.attention(q, k, v, None, seeds, 0.3)),
        (convolved, grouped_conv._plain(x, kernel, bias)),
    ):
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=0.05, atol=0.05
        )
    said = capsys.readouterr().out
    assert said.count("attention without a kernel of its own: ") == 1
    assert said.count("grouped convolution without a kernel of its own: ") == 1


def test_a_module_that_jax_has_no_backend_for_any_more_is_said(
    on_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_kernels.load("attention", "no_such_kernel", jnp.bfloat16) is None
    assert "No module named 'spidr_jax.ops.kernels.no_such_kernel'" in capsys.readouterr().out


def test_the_model_calls_the_kernels_with_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {
        "attention": SimpleNamespace(
            attention=lambda *a: attention_kernel.attention(*a, interpret=True)
        ),
        "grouped_conv": SimpleNamespace(
            forward=lambda *a: conv_kernel.forward(*a, interpret=True),
            gradients=lambda *a: conv_kernel.gradients(*a, interpret=True),
        ),
    }
    seeds = jnp.array([[1, 2], [3, 4]], jnp.uint32)
    mask = jnp.arange(9) < jnp.array([9, 4])[:, None]
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = jax.random.normal(keys[0], (2, 9, 3, 2, 16))
    x, kernel = jax.random.normal(keys[1], (2, 9, 12)), jax.random.normal(keys[2], KERNEL)

    def results() -> list[jax.Array]:
        found = []
        for function, arguments in (
            (lambda qkv: attention.attention(qkv, mask, seeds, 0.3), (qkv,)),
            (lambda qkv: attention.attention(qkv, None, None, 0.3), (qkv,)),
            (grouped_conv.grouped_conv, (x, kernel, jnp.arange(KERNEL[2]) / 4)),
        ):
            value, back = jax.vjp(function, *arguments)
            found += [value, *back(value)]
        return found

    expected = results()
    asked = []

    def load(name: str, module: str, *arguments: Any) -> Any:
        asked.append(module)
        return stand_ins[module]

    monkeypatch.setattr(own_kernels, "load", load)
    for found, plainly in zip(results(), expected, strict=True):
        np.testing.assert_allclose(found, plainly, rtol=1e-5, atol=1e-5)
    assert asked == ["attention"] * 2 + ["grouped_conv"] * 2
