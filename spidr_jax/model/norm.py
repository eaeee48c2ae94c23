"""LayerNorm as a module: the parameters of the functions in `ops.norms`."""

import jax
from flax import linen as nn

from spidr_jax.ops.norms import add_layer_norm, layer_norm


class LayerNorm(nn.Module):
    """LayerNorm of x [B, ..., D] or of residual + dropout(x)."""

    @nn.compact
    def weights(self, width: int) -> tuple[jax.Array, jax.Array]:
        """Scale and bias [D]."""
        return (
            self.param("scale", nn.initializers.ones, (width,)),
            self.param("bias", nn.initializers.zeros, (width,)),
        )

    def __call__(
        self,
        x: jax.Array,
        residual: jax.Array | None = None,
        seeds: jax.Array | None = None,
        rate: float = 0.0,
    ) -> jax.Array:
        scale, bias = self.weights(x.shape[-1])
        if residual is not None:
            return add_layer_norm(residual, x, scale, bias, seeds, rate)
        return layer_norm(x, scale, bias)
