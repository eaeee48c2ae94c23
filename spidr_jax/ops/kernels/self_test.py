"""What kernels' self-tests share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Arrays = Sequence[jax.Array]


def largest_error(compare: Callable[..., tuple[Arrays, Arrays]], *arrays: Any) -> float:
    """The largest error of what a kernel computes of arrays and what it should, over its norm.

    It runs at once, also while another function is traced, which a call would become part of.
    """

    def norm(x: jax.Array) -> jax.Array:
        return jnp.linalg.norm(x.astype(jnp.float32).ravel())

    def error(*arrays: jax.Array) -> jax.Array:
        pairs = zip(*compare(*arrays), strict=True)
        return jnp.stack([norm(found - true) / norm(true) for found, true in pairs]).max()

    return float(jax.jit(error).lower(*arrays).compile()(*arrays))
