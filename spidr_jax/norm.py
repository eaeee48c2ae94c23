"""The parameters of a LayerNorm; what is done with them stands in `ops.py`."""

import jax
from flax import linen as nn


class Norm(nn.Module):
    """Gives a norm's scale and bias, float32 [D] each, for D channels."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return scale, self.param("bias", nn.initializers.zeros, (channels,))
