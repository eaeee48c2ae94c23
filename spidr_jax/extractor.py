"""The convolutional front end: waveforms to features.

B batch, S samples, T frames, C convolution channels, D model width.
Source: wav2vec 2.0 (arXiv 2006.11477), as SpidR uses it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from spidr_jax.model_config import ModelConfig, num_frames
from spidr_jax.ops import gelu, instance_norm, layer_norm, uniform_init


class InstanceNorm(nn.Module):
    """GroupNorm with one group a channel: `instance_norm` with scale and bias."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, frame_mask: jax.Array | None) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (instance_norm(x, frame_mask) * scale + bias).astype(self.dtype)


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
        fan_in = x.shape[-1] * self.kernel
        x = nn.Conv(
            self.channels,
            (self.kernel,),
            self.stride,
            padding="VALID",
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(math.sqrt(2 / fan_in)),
            bias_init=uniform_init(1 / math.sqrt(fan_in)),
            name="conv",
        )(x)
        if self.norm == "layer_norm":
            x = layer_norm(self.dtype, "layer_norm")(x)
        elif self.norm == "group_norm":
            x = InstanceNorm(self.dtype, name="layer_norm")(x, frame_mask)
        return gelu(x)


class FeatureExtractor(nn.Module):
    """Waveforms [B, S] -> features [B, T, C]; the published layers give a frame per 320 samples."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, waveforms: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        x = waveforms[..., None].astype(self.dtype)  # [B, S, 1]
        layers = self.config.extractor_conv_layer_config
        for i, (channels, kernel, stride) in enumerate(layers):
            norm = self.config.extractor_mode
            if norm == "group_norm" and i > 0:
                norm = "none"
            frame_mask = None
            if norm == "group_norm" and lengths is not None:
                frames = num_frames(x.shape[1], layers[:1])
                frame_mask = jnp.arange(frames) < num_frames(lengths, layers[:1])[:, None]
            block = ConvLayerBlock(
                channels,
                kernel,
                stride,
                norm,
                self.config.extractor_conv_bias,
                self.dtype,
                name=f"conv_layers_{i}",
            )
            x = block(x, frame_mask)
        return x


class FeatureProjection(nn.Module):
    """LayerNorm over the channels, then [B, T, C] -> [B, T, D]."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bound = 1 / math.sqrt(x.shape[-1])
        x = layer_norm(self.dtype, "layer_norm")(x)
        return nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=uniform_init(bound),
            bias_init=uniform_init(bound),
            name="projection",
        )(x)
