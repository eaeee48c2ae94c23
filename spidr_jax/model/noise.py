"""Random draws of one pass through the encoder, by the names of the sites that use them.

A mask depends on its row's seeds, its site's name and the place in the row alone: it is the same
on any number of devices, in a layer that is computed again, and in the backward pass. B rows,
L layers.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spidr_jax.model.config import ModelConfig
from spidr_jax.ops.dropout import mix


class Noise(NamedTuple):
    """Random draws of one pass through the encoder."""

    seeds: jax.Array  # uint32 [B, 2], from which `at` makes those of each site that drops
    layer_keep: jax.Array  # bool [L], false where layer drop leaves a layer out


def draw_noise(config: ModelConfig, key: jax.Array, rows: int) -> Noise:
    """Draw the noise of a training step's student; a layer is dropped for all rows together."""
    seeds_key, layers_key = jax.random.split(key)
    return Noise(
        jax.random.bits(seeds_key, (rows, 2), jnp.uint32),
        jax.random.uniform(layers_key, (config.encoder_num_layers,)) > config.encoder_layer_drop,
    )


def at(seeds: jax.Array | None, site: str) -> jax.Array | None:
    """The seeds of a named site, uint32 [B, 2], from those of what it lies in; None of None.

    Sites of one parent need names that differ, such as "attention" and "feed_forward".
    """
    if seeds is None:
        return None
    return mix(seeds + jnp.uint32(zlib.crc32(site.encode())))
