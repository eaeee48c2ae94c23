"""The encoder: positional convolution and transformer layers, for student and teacher alike.

B batch, T frames, D model width, H attention heads, L layers.
Source: SpidR (arXiv 2512.20308), data2vec for the positional convolution.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from spidr_jax.model.config import ModelConfig
from spidr_jax.model.initializers import uniform_init
from spidr_jax.model.noise import Noise, at
from spidr_jax.model.norm import LayerNorm
from spidr_jax.ops.attention import attention
from spidr_jax.ops.dropout import dropout
from spidr_jax.ops.grouped_conv import grouped_conv
from spidr_jax.ops.norms import gelu, layer_norm_gelu


class GroupedConv(nn.Module):
    """Convolution over time within each group of channels, and a bias: [B, T, D] -> [B, T, D]."""

    width: int
    groups: int
    bound: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, init = x.shape[-1], uniform_init(self.bound)
        shape = (self.width, channels // self.groups, channels)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, (channels,)).astype(self.dtype)
        return grouped_conv(x.astype(self.dtype), kernel, bias)


class PositionalConv(nn.Module):
    """Stack of grouped convolutions, each with LayerNorm and GELU: [B, T, D] -> [B, T, D]."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, frame_mask: jax.Array | None = None) -> jax.Array:
        width, groups = self.config.encoder_embed_dim, self.config.encoder_pos_conv_groups
        depth = self.config.encoder_pos_conv_depth
        kernel = max(3, self.config.encoder_pos_conv_kernel // depth)
        bound = 1 / math.sqrt(width // groups * kernel)
        frames = x.shape[1]
        valid = None if frame_mask is None else frame_mask[..., None].astype(x.dtype)
        for i in range(depth):
            x = x if valid is None else x * valid
            x = GroupedConv(kernel, groups, bound, self.dtype, name=f"convs_{i}")(x)[:, :frames]
            x = layer_norm_gelu(x, None, None)
        return x if valid is None else x * valid


class SelfAttention(nn.Module):
    """Multi-head self-attention, [B, T, D] -> [B, T, D], with float32 softmax."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, frame_mask: jax.Array | None, seeds: jax.Array | None
    ) -> jax.Array:
        width, heads = self.config.encoder_embed_dim, self.config.encoder_num_heads
        bound = math.sqrt(6 / (2 * width))
        qkv = nn.Dense(
            3 * width,
            use_bias=self.config.encoder_qkv_bias,
            dtype=self.dtype,
            kernel_init=uniform_init(math.sqrt(6 / (4 * width)) / math.sqrt(2)),
            name="qkv",
        )(x)
        qkv = qkv.reshape(*x.shape[:2], 3, heads, width // heads)
        rate = self.config.encoder_attention_dropout
        x = attention(qkv, frame_mask, seeds, rate).reshape(x.shape)  # [B, T, D]
        return nn.Dense(width, dtype=self.dtype, kernel_init=uniform_init(bound), name="proj")(x)


class FeedForward(nn.Module):
    """Dense, GELU, dropout, dense: [B, T, D] -> [B, T, D]."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, seeds: jax.Array | None) -> jax.Array:
        init = nn.initializers.normal(0.02)
        features = self.config.encoder_ff_interm_features
        hidden = nn.Dense(features, dtype=self.dtype, kernel_init=init, name="intermediate_dense")
        output = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="output_dense")
        return output(dropout(gelu(hidden(x)), seeds, self.config.encoder_ff_interm_dropout))


class TransformerLayer(nn.Module):
    """One encoder layer; returns the residual stream and the feed-forward output before it."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, frame_mask: jax.Array | None, seeds: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        attend = SelfAttention(self.config, self.dtype, name="attention")
        feed_forward = FeedForward(self.config, self.dtype, name="feed_forward")
        norm_1 = LayerNorm(name="layer_norm")
        norm_2 = LayerNorm(name="final_layer_norm")
        rate = self.config.encoder_dropout
        weights, hidden = at(seeds, "attention_weights"), at(seeds, "hidden")
        attended, final = at(seeds, "attention"), at(seeds, "feed_forward")
        if self.config.encoder_layer_norm_first:
            x = x + dropout(attend(norm_1(x), frame_mask, weights), attended, rate)
            output = feed_forward(norm_2(x), hidden)
            return x + dropout(output, final, rate), output
        x = norm_1(attend(x, frame_mask, weights), x, attended, rate)
        output = feed_forward(x, hidden)
        return norm_2(output, x, final, rate), output


# A name for config.model.encoder_layer, and what makes the module, given config, dtype and name.
# It is called with x [B, T, D], the mask of valid frames (bool [B, T]; None) and the layer's seeds
# (uint32 [B, 2]; None), of which `noise.at` makes those of each of its sites that drop. It gives
# the residual stream [B, T, D] and the layer's representation [B, T, D].
LAYERS: dict[str, Callable[..., nn.Module]] = {"transformer": TransformerLayer}


class Encoder(nn.Module):
    """Positional convolution and transformer layers; the same module for student and teacher."""

    config: ModelConfig
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, frame_mask: jax.Array | None = None, noise: Noise | None = None
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Encode features.

        Args:
            x: [B, T, D].
            frame_mask: bool [B, T], true at valid frames; None if all are.
            noise: seeds of dropout and layer drop; None for neither.

        Returns:
            The final residual stream [B, T, D], and for each of the L layers its representation:
            the feed-forward output before the residual, [B, T, D].
        """
        cfg = self.config
        norm = LayerNorm(name="layer_norm")
        seeds = None if noise is None else noise.seeds
        x = x + PositionalConv(cfg, self.dtype, name="pos_conv_embed")(x, frame_mask)
        if not cfg.encoder_layer_norm_first:
            x = norm(x)
        x = dropout(x, at(seeds, "pos_conv_embed"), cfg.encoder_dropout)
        layer_class: Any = LAYERS[cfg.encoder_layer]
        layer_class = nn.remat(layer_class) if self.remat else layer_class
        outputs = []
        for i in range(cfg.encoder_num_layers):
            name = f"layers_{i}"
            layer_x, output = layer_class(cfg, self.dtype, name=name)(
                x, frame_mask, at(seeds, name)
            )
            if cfg.encoder_layer_drop > 0 and noise is not None:
                layer_x = jnp.where(noise.layer_keep[i], layer_x, x)
            x = layer_x
            outputs.append(output)
        return norm(x) if cfg.encoder_layer_norm_first else x, outputs
