"""The convolutional front end: waveforms to features.

B batch, S samples, T frames, C convolution channels, D model width.
Source: wav2vec 2.0 (arXiv 2006.11477), as SpidR uses it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from spidr_jax.model.config import Framing, ModelConfig
from spidr_jax.model.initializers import uniform_init
from spidr_jax.model.norm import LayerNorm
from spidr_jax.ops.conv import conv, conv_norm_gelu
from spidr_jax.ops.norms import gelu, instance_norm


def conv_framing(layers: tuple[tuple[int, int, int], ...]) -> Framing:
    """Where the frames of convolutions without padding, (channels, kernel, stride), lie."""
    field = 1
    for _, kernel, stride in reversed(layers):
        field = (field - 1) * stride + kernel
    return Framing(math.prod(stride for _, _, stride in layers), field)


class Conv(nn.Module):
    """Convolution without padding: [B, S, C] -> [B, T, D]."""

    channels: int
    kernel: int
    stride: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def weights(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        """Kernel [K, C, D] for so many channels C, and bias [D]."""
        fan_in = channels * self.kernel
        init = nn.initializers.normal(math.sqrt(2 / fan_in))
        kernel = self.param("kernel", init, (self.kernel, channels, self.channels))
        if not self.use_bias:
            return kernel, None
        init = uniform_init(1 / math.sqrt(fan_in))
        return kernel, self.param("bias", init, (self.channels,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x, *self.weights(x.shape[-1]), self.stride, self.dtype)


class ConvLayerBlock(nn.Module):
    """Convolution without padding, the norm that the mode asks for, GELU."""

    channels: int
    kernel: int
    stride: int
    norm: str  # "layer_norm", "group_norm" or "none"
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, frame_mask: jax.Array | None) -> jax.Array:
        size = self.channels, self.kernel, self.stride
        convolution = Conv(*size, self.use_bias, self.dtype, name="conv")
        if self.norm == "none":
            return gelu(convolution(x))
        scale, bias = LayerNorm(name="layer_norm").weights(self.channels)
        if self.norm == "layer_norm":
            weights = convolution.weights(x.shape[-1])
            return conv_norm_gelu(x, *weights, scale, bias, self.stride, self.dtype)
        normed = instance_norm(convolution(x), frame_mask) * scale + bias
        return gelu(normed.astype(self.dtype))


class Frontend(nn.Module):
    """Base class of front ends."""

    config: ModelConfig
    dtype: Any
    remat: bool = False

    @staticmethod
    def framing(config: ModelConfig) -> Framing:
        """Where its frames lie."""
        raise NotImplementedError


class FeatureExtractor(Frontend):
    """Convolutions without padding; the published layers give a frame per 320 samples."""

    @staticmethod
    def framing(config: ModelConfig) -> Framing:
        """Where its frames lie."""
        return conv_framing(config.extractor_conv_layer_config)

    @nn.compact
    def __call__(self, waveforms: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        x = waveforms[..., None]  # [B, S, 1]
        block_class = nn.remat(ConvLayerBlock) if self.remat else ConvLayerBlock
        norm, layers = self.config.extractor_mode, self.config.extractor_conv_layer_config
        frame_mask = None
        if norm == "group_norm" and lengths is not None:
            first = conv_framing(layers[:1])
            frames = jnp.arange(first.num_frames(x.shape[1]))
            frame_mask = frames < first.num_frames(lengths)[:, None]
        bias = self.config.extractor_conv_bias
        for i, size in enumerate(layers):
            block = block_class(*size, norm, bias, self.dtype, name=f"conv_layers_{i}")
            x = block(x, frame_mask)
            norm = "none" if norm == "group_norm" else norm  # the first layer's alone
        return x


# A name for config.model.frontend, and the class. Called with waveforms [B, S] and valid samples
# of each (int [B]; None), a front end gives features [B, T, C]. It may have no parameters.
FRONTENDS: dict[str, type[Frontend]] = {"conv": FeatureExtractor}


class FeatureProjection(nn.Module):
    """LayerNorm over the channels, then [B, T, C] -> [B, T, D]."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bound = 1 / math.sqrt(x.shape[-1])
        x = LayerNorm(name="layer_norm")(x)
        return nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=uniform_init(bound),
            bias_init=uniform_init(bound),
            name="projection",
        )(x)
