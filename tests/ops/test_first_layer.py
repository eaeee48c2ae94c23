"""The first layer as one product, its kernels interpreted, against convolution, norm and GELU."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_on_cpu import errors, interpreted

from spidr_jax.model.config import ModelConfig
from spidr_jax.model.frontend import FeatureExtractor
from spidr_jax.ops import reference
from spidr_jax.ops.conv import conv
from spidr_jax.ops.dispatch import Kernel
from spidr_jax.ops.first_layer import first_layer
from spidr_jax.ops.kernels import first_layer as first_layer_kernel

# samples, taps, stride, channels: base's layer but for its channels; one frame of many taps, whose
# stride is longer; several programs, each of several blocks of frames
SIZES = [(1003, 10, 5, 24), (17, 16, 20, 24), (1500, 4, 3, 200)]
Arrays = tuple[jax.Array, ...]


@pytest.fixture
def on_cpu(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_layer_kernel, "PROGRAMS", 16)  # two a chunk of channels and row
    kernels({"first layer": interpreted("first layer")})


def draw(size: tuple[int, int, int, int]) -> tuple[jax.Array, Arrays, jax.Array]:
    """Waveforms; kernel, scale and bias; the gradient of the output."""
    samples, taps, stride, channels = size
    keys = jax.random.split(jax.random.key(samples), 4)
    waveforms = 0.3 + jax.random.normal(keys[0], (2, samples))
    kernel = jax.random.normal(keys[1], (taps, channels))
    vectors = 0.3 + jax.random.normal(keys[2], (2, channels))
    g = jax.random.normal(keys[3], (2, (samples - taps) // stride + 1, channels))
    return waveforms, (kernel, *vectors), g


def ours(waveforms: jax.Array, weights: Arrays, stride: int, dtype: Any) -> jax.Array:
    return first_layer(waveforms, *weights, stride, dtype)


def theirs(waveforms: jax.Array, weights: Arrays, stride: int, dtype: Any) -> jax.Array:
    kernel, *vectors = weights
    x = conv(waveforms[..., None], kernel[:, None], None, stride, dtype)
    return reference.layer_norm_gelu(x, *vectors)


def run(layer: Any, waveforms: jax.Array, weights: Arrays, g: jax.Array, *rest: Any) -> Arrays:
    """The layer's value, and the gradients of its weights."""
    value, back = jax.vjp(lambda weights: layer(waveforms, weights, *rest), weights)
    return value, *back(g.astype(value.dtype))[0]


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradients_are_autodiffs_in_float32(
    size: tuple[int, int, int, int], on_cpu: None
) -> None:
    arguments = *draw(size), size[2], jnp.float32
    found, truth = (run(each, *arguments) for each in (ours, theirs))
    assert [each.shape for each in found] == [each.shape for each in truth]
    assert max(errors(found, truth)) < 1e-5


@pytest.mark.parametrize("size", SIZES[::2])
def test_bfloat16_is_as_exact_as_the_convolution(
    size: tuple[int, int, int, int], on_cpu: None
) -> None:
    arguments = *draw(size), size[2]
    truth = run(theirs, *arguments, jnp.float32)
    found, other = (errors(run(each, *arguments, jnp.bfloat16), truth) for each in (ours, theirs))
    assert all(mine <= 1.2 * theirs for mine, theirs in zip(found, other, strict=True))


def test_bfloat16_is_more_exact_where_samples_are_alike(on_cpu: None) -> None:
    """A voice's harmonics, and kernels that hear no constant, as trained ones."""
    _, (kernel, *vectors), g = draw(SIZES[0])
    time = np.arange(SIZES[0][0]) / 16_000
    voice = sum(np.sin(2 * np.pi * 120 * i * time + i) / i for i in range(1, 12))
    waveforms = jnp.asarray(np.stack([voice, voice[::-1]]), jnp.float32)
    weights = kernel - kernel.mean(axis=0), *vectors
    arguments = waveforms, weights, g, 5
    truth = run(theirs, *arguments, jnp.float32)
    found, other = (errors(run(each, *arguments, jnp.bfloat16), truth) for each in (ours, theirs))
    assert all(mine < 0.4 * theirs for mine, theirs in zip(found, other, strict=True))


def test_silence_is_the_bias_rounded_once(on_cpu: None) -> None:
    _, weights, g = draw(SIZES[0])
    silence = jnp.zeros((2, SIZES[0][0]))
    jitted = jax.jit(run, static_argnums=(0, 4, 5))
    value, *gradients = jitted(ours, silence, weights, g, 5, jnp.bfloat16)
    expected = reference.gelu(weights[2]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(value, np.broadcast_to(expected, value.shape))
    assert all(np.isfinite(each).all() for each in gradients)


def test_waveforms_get_their_gradient_where_it_is_asked_for(on_cpu: None) -> None:
    waveforms, weights, g = draw(SIZES[0])
    found, truth = (
        jax.vjp(lambda x, each=each: each(x, weights, 5, jnp.float32), waveforms)[1](g)
        for each in (ours, theirs)
    )
    assert errors(found, truth)[0] < 1e-5


def test_all_products_outside_the_kernel_are_full_float32(kernels: Any) -> None:
    waveforms, weights, g = draw(SIZES[0])
    without_products: Any = SimpleNamespace(
        self_test=lambda *_: 0.0,
        forward=lambda x, weights: jnp.zeros_like(g),
        gradients=lambda x, weights, g, scaled: (jnp.zeros(weights.shape), jnp.zeros(x.shape[:2])),
    )
    kernels({"first layer": Kernel(without_products, "cpu", (jnp.float32,))})

    def total(waveforms: jax.Array, weights: Arrays) -> jax.Array:
        return ours(waveforms, weights, 5, jnp.float32).sum()

    text = str(jax.make_jaxpr(jax.grad(total, (0, 1)))(waveforms, weights))
    products = [each[:300] for each in text.split(" dot_general[")[1:]]
    assert len(products) > 8
    assert all("HIGHEST" in each for each in products)


LAYERS = [(24, 10, 5), (24, 3, 2)]


@pytest.mark.parametrize(
    ("fields", "takes"),
    [({}, True), ({"extractor_conv_bias": True}, False), ({"extractor_mode": "group_norm"}, False)],
)
def test_the_extractor_takes_it_for_waveforms_under_layer_norm(
    fields: dict[str, Any], takes: bool, kernels: Any
) -> None:
    extractor = FeatureExtractor(
        ModelConfig(extractor_conv_layer_config=LAYERS, **fields), jnp.float32
    )
    waveforms, kernel = draw(SIZES[0])[0], interpreted("first layer")
    kernels({})
    params = extractor.init(jax.random.key(0), waveforms)
    expected = extractor.apply(params, waveforms)
    asked = []
    module: Any = SimpleNamespace(
        forward=kernel.module.forward, self_test=lambda *shape: asked.append(shape) or 0.0
    )
    kernels({"first layer": kernel._replace(module=module)})
    found = extractor.apply(params, waveforms)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert asked == ([(jnp.float32, 10, 24)] if takes else [])
