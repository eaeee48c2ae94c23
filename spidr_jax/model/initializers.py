"""How parameters are drawn."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def uniform_init(bound: float) -> nn.initializers.Initializer:
    """Initialiser that draws from the uniform distribution on [-bound, bound)."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
