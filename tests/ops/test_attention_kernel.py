"""The attention kernels, interpreted on the CPU, against the reference."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_on_cpu import errors

from spidr_jax.ops import reference
from spidr_jax.ops.kernels.attention import attention

HEADS, WIDTH = 2, 16
LENGTHS = {5: [5, 1], 64: [64, 63], 200: [200, 77]}  # of two utterances; of no block's size, too


def draw(frames: int, dtype: Any) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(frames), 3)
    qkv = 0.3 + 1.5 * jax.random.normal(keys[0], (2, frames, 3, HEADS, WIDTH))
    g = jax.random.normal(keys[1], (2, frames, HEADS, WIDTH))
    seeds = jax.random.bits(keys[2], (2, 2), jnp.uint32)
    return qkv.astype(dtype), jnp.array(LENGTHS[frames]), seeds, g.astype(dtype)


def run(
    attend: Any, qkv: jax.Array, lengths: jax.Array, seeds: jax.Array, g: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
    """Value and gradient."""
    mask = jnp.arange(qkv.shape[1]) < lengths[:, None]
    value, back = jax.vjp(lambda qkv: attend(qkv, mask, seeds, rate), qkv)
    return value, back(g)[0]


ours = partial(run, partial(attention, interpret=True))
theirs = partial(run, reference.attention)


def compare(found: tuple[jax.Array, ...], truth: tuple[jax.Array, ...]) -> list[float]:
    """Errors of the value and of the gradients of q, k and v."""
    return errors(*([value, *jnp.moveaxis(back, 2, 0)] for value, back in (found, truth)))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("frames", LENGTHS)
def test_value_and_gradients_are_the_references_in_float32(frames: int, rate: float) -> None:
    arguments = draw(frames, jnp.float32)
    found = ours(*arguments, rate)
    assert max(compare(found, theirs(*arguments, rate))) < 1e-5
    qkv, lengths, seeds, _ = arguments
    mask = jnp.arange(frames) < lengths[:, None]
    alone = attention(qkv, mask, seeds, rate, interpret=True)  # asked for no gradient
    np.testing.assert_array_equal(alone, found[0])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_bfloat16_is_as_exact_as_the_reference(rate: float) -> None:
    qkv, lengths, seeds, g = arguments = draw(200, jnp.bfloat16)
    truth = theirs(qkv.astype(jnp.float32), lengths, seeds, g.astype(jnp.float32), rate)
    found, other = (compare(each(*arguments, rate), truth) for each in (ours, theirs))
    assert all(mine <= 1.2 * theirs for mine, theirs in zip(found, other, strict=True))


def test_padding_has_no_part() -> None:
    qkv, lengths, seeds, g = draw(200, jnp.float32)
    loud = jnp.where(jnp.arange(200)[:, None, None, None] < 77, qkv[1], 1e4)
    for found, other in zip(
        ours(qkv, lengths, seeds, g.at[1, 77:].set(0), 0.3),
        ours(qkv.at[1].set(loud), lengths, seeds, g.at[1, 77:].set(0), 0.3),
        strict=True,
    ):
        np.testing.assert_allclose(found[1, :77], other[1, :77], rtol=1e-6, atol=1e-6)


def test_rows_without_frames_give_numbers() -> None:
    qkv, _, seeds, g = draw(64, jnp.float32)
    value, gradient = ours(qkv, jnp.array([64, 0]), seeds, g, 0.3)
    assert np.isfinite(value).all()
    assert not np.asarray(gradient[1]).any()
