"""Prediction heads: from the encoder's outputs to logits of codes, a head a codebook.

B batch, T frames, D model width, K codebooks, V codes per codebook.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from spidr_jax.model.config import ModelConfig
from spidr_jax.model.initializers import uniform_init


@jax.custom_vjp
def _project(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[K or 1, B, T, D] times [K, 1, D, V] plus float32 [K, V] -> float32 [K, B, T, V].

    As in the reference's autocast, the gradient is rounded to the factors' type: else products
    of the backward pass would be float32's.
    """
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias[:, None, None]


def _project_backward(factors: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    # without a barrier XLA keeps g in float32, too, for the sum
    g = lax.optimization_barrier(g.astype(factors[0].dtype))
    return *jax.vjp(jnp.matmul, *factors)[1](g), g.sum(axis=(1, 2), dtype=jnp.float32)


_project.defvjp(lambda x, kernel, bias: (_project(x, kernel, bias), (x, kernel)), _project_backward)


class LinearHeads(nn.Module):
    """One linear head a codebook: SpidR's and DinoSR's."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, codebooks: slice | jax.Array = slice(None)) -> jax.Array:
        init = uniform_init(1 / math.sqrt(x.shape[-1]))
        shape = (self.config.num_codebooks, x.shape[-1], self.config.codebook_size)
        kernel = self.param("kernel", init, shape)[codebooks].astype(self.dtype)
        bias = self.param("bias", init, (shape[0], shape[2]))[codebooks]
        return _project(x, kernel[:, None], bias)


# A name for config.model.head, and what makes the module of a config and the type it computes in.
# The module has parameters for all K codebooks. It is called with x [K or 1, B, T, D] (1 where all
# heads read the same) and gives float32 logits [K, B, T, V]; with `codebooks`, an index into the
# axis of K, with x and logits of those alone.
HEADS: dict[str, Callable[[ModelConfig, Any], nn.Module]] = {"linear": LinearHeads}
