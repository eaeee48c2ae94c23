"""The convolutional front end: waveforms to features.

B batch, S samples, T frames, C convolution channels, D model width.
Source: wav2vec 2.0 (arXiv 2006.11477), as SpidR uses it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from spidr_jax.model.config import Framing, ModelConfig
from spidr_jax.model.norm import LayerNorm
from spidr_jax.ops.first_layer import first_layer, own_kernel
from spidr_jax.ops.norms import gelu, instance_norm, uniform_init


def conv_framing(layers: tuple[tuple[int, int, int], ...]) -> Framing:
    """Where the frames of convolutions without padding, (channels, kernel, stride), lie."""
    field = 1
    for _, kernel, stride in reversed(layers):
        field = (field - 1) * stride + kernel
    return Framing(math.prod(stride for _, _, stride in layers), field)


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve [B, S, C] with a kernel [K, C, D], without padding: [B, (S - K) // stride + 1, D].

    Where the stride divides K it is a product of matrices, which is faster than a convolution.
    """
    width, channels, features = kernel.shape
    if width % stride:
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=layout)
    frames, steps = (x.shape[1] - width) // stride + 1, width // stride
    x = x[:, : (frames + steps - 1) * stride]
    x = x.reshape(x.shape[0], frames + steps - 1, stride * channels)
    x = jnp.concatenate([x[:, i : i + frames] for i in range(steps)], axis=-1)
    return x @ kernel.reshape(width * channels, features)


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
        kernel, bias = self.weights(x.shape[-1])
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        return x if bias is None else x + bias.astype(self.dtype)


class InstanceNorm(nn.Module):
    """GroupNorm with one group a channel: `instance_norm` with scale and bias."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, frame_mask: jax.Array | None) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (instance_norm(x, frame_mask) * scale + bias).astype(self.dtype)


class ConvLayerBlock(nn.Module):
    """Convolution without padding, the norm that the mode asks for, GELU.

    The first layer, of waveforms [B, S, 1], is one kernel where it can be.
    """

    channels: int
    kernel: int
    stride: int
    norm: str  # "layer_norm", "group_norm" or "none"
    use_bias: bool
    dtype: Any
    first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, frame_mask: jax.Array | None) -> jax.Array:
        size = self.channels, self.kernel, self.stride
        conv = Conv(*size, self.use_bias, self.dtype, name="conv")
        if self.norm == "layer_norm":
            norm = LayerNorm(gelu=True, name="layer_norm")
            alone = self.first and not self.use_bias
            if alone and own_kernel(self.kernel, self.channels, self.dtype):
                kernel, vectors = conv.weights(1)[0][:, 0], norm.weights(self.channels)
                return first_layer(x[..., 0], kernel, *vectors, self.stride, self.dtype)
            return norm(conv(x))
        x = conv(x)
        if self.norm == "group_norm":
            x = InstanceNorm(self.dtype, name="layer_norm")(x, frame_mask)
        return gelu(x)


class Frontend(nn.Module):
    """What a front end is built from, and what it says of its frames."""

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
        layers = self.config.extractor_conv_layer_config
        for i, (channels, kernel, stride) in enumerate(layers):
            norm = self.config.extractor_mode
            if norm == "group_norm" and i > 0:
                norm = "none"
            frame_mask = None
            if norm == "group_norm" and lengths is not None:
                first = conv_framing(layers[:1])
                frames = jnp.arange(first.num_frames(x.shape[1]))
                frame_mask = frames < first.num_frames(lengths)[:, None]
            block = block_class(
                channels,
                kernel,
                stride,
                norm,
                self.config.extractor_conv_bias,
                self.dtype,
                i == 0,
                name=f"conv_layers_{i}",
            )
            x = block(x, frame_mask)
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
