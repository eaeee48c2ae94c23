"""Checksums of arrays, the same on any number of devices and in numpy."""

import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spidr_jax.ops.dropout import mix


@jax.jit
def fingerprint(x: jax.Array) -> jax.Array:
    """Sum, modulo 2^32, of an array's words times odd numbers hashed from their places.

    A change of a single bit always changes it. Elements have at most 32 bits.
    """
    words = lax.bitcast_convert_type(x, _unsigned(x.dtype)).astype(jnp.uint32)
    return _sum(jnp, words)


def fingerprint_host(x: np.ndarray) -> int:
    """The `fingerprint` of an array in numpy."""
    words = np.ascontiguousarray(x).view(_unsigned(x.dtype)).reshape(x.shape).astype(np.uint32)
    return int(_sum(np, words))


def _sum(numpy: ModuleType, words: Any) -> Any:
    places = numpy.zeros(words.shape, np.uint32)
    for axis, size in enumerate(words.shape):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        along = numpy.arange(size, dtype=np.uint32) * np.uint32(stride)
        places = places + along.reshape(-1, *[1] * (words.ndim - axis - 1))
    return (words * (mix(places) | 1)).sum(dtype=np.uint32)


def _unsigned(dtype: Any) -> Any:
    return np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
