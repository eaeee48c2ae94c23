"""Transformer layers with rotary positions and dropout of their own: a module and an entry."""

from pathlib import Path

import driver

EXPERIMENT = '''
import runpy
from pathlib import Path
from typing import Any
import jax.numpy as jnp
from flax import linen as nn
from spidr_jax.model import encoder
from spidr_jax.model.config import ModelConfig
from spidr_jax.model.noise import at
from spidr_jax.ops.attention import attention
from spidr_jax.ops.dropout import dropout


def rotated(x):
    """Queries or keys [B, T, H, E], each pair of channels turned by an angle that grows with T."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10_000 ** (-jnp.arange(half) / half)  # [T, E / 2]
    sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class RotaryLayer(nn.Module):
    """Pre-norm attention with rotary positions, then the feed-forward part."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, frame_mask, seeds):
        heads, width = self.config.encoder_num_heads, x.shape[-1]
        qkv = nn.Dense(3 * width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, width // heads), 2, 0)
        qkv = jnp.stack([rotated(q), rotated(k), v], axis=2)
        attended = attention(qkv, frame_mask, None, 0.0).reshape(x.shape)
        x = x + dropout(nn.Dense(width, dtype=self.dtype)(attended), at(seeds, "attention"), 0.1)
        normed = nn.LayerNorm(dtype=self.dtype)(x)
        output = encoder.FeedForward(self.config, self.dtype)(normed, at(seeds, "hidden"))
        return x + dropout(output, at(seeds, "output"), 0.1), output


encoder.LAYERS["rotary"] = RotaryLayer


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.model.encoder_layer = "rotary"
    config.memory.remat = True
    return config
'''


def test_rotary_layers(tmp_path: Path) -> None:
    driver.run(tmp_path, EXPERIMENT)
