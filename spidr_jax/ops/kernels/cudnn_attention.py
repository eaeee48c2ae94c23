"""cuDNN's flash attention, which has no dropout that a compiled program can seed."""

from typing import Any

import jax
import jax.numpy as jnp


def attention(
    qkv: jax.Array, frame_mask: jax.Array | None, seeds: jax.Array | None, rate: float
) -> jax.Array:
    """`ops.attention.attention` without dropout: seeds None and rate 0."""
    assert seeds is None
    assert rate == 0
    q, k, v = (qkv[:, :, i] for i in range(3))
    lengths = None if frame_mask is None else frame_mask.sum(axis=1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def self_test(dtype: Any, shape: tuple[int, int, int]) -> float:
    """Compile value and gradient, with and without a mask; 0, as nothing is compared.

    Args:
        dtype: type of the queries, keys and values.
        shape: frames, heads and width of a head.
    """
    frames, *head = shape
    qkv = jax.ShapeDtypeStruct((1, frames, 3, *head), dtype)
    for mask in (None, jax.ShapeDtypeStruct((1, frames), jnp.bool)):
        total = lambda x, mask: attention(x, mask, None, 0).astype(jnp.float32).sum()  # noqa: E731
        jax.jit(jax.grad(total)).lower(qkv, mask).compile()
    return 0.0
