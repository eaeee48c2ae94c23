"""The attention kernels, interpreted on the CPU, against the plain attention."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.ops import reference as plain
from spidr_jax.ops.kernels import attention as attention_kernel

HEADS, WIDTH = 2, 16
LENGTHS = {5: [5, 1], 64: [64, 63], 200: [200, 77]}  # of two utterances; of no block's size, too


def draw(frames: int, dtype: Any) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(frames), 3)
    qkv = 0.3 + 1.5 * jax.random.normal(keys[0], (2, frames, 3, HEADS, WIDTH))
    g = jax.random.normal(keys[1], (2, frames, HEADS, WIDTH))
    seeds = jax.random.bits(keys[2], (2, 2), jnp.uint32)
    return qkv.astype(dtype), jnp.array(LENGTHS[frames]), seeds, g.astype(dtype)


def ours(
    qkv: jax.Array, lengths: jax.Array, seeds: jax.Array, g: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
    value, back = jax.vjp(
        lambda qkv: attention_kernel.attention(qkv, lengths, seeds, rate, True), qkv
    )
    return value, back(g)[0]


def theirs(
    qkv: jax.Array, lengths: jax.Array, seeds: jax.Array, g: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
    mask = jnp.arange(qkv.shape[1]) < lengths[:, None]
    value, back = jax.vjp(
        lambda qkv: plain.attention(*(qkv[:, :, i] for i in range(3)), mask, seeds, rate), qkv
    )
    return value, back(g)[0]


def errors(found: tuple[jax.Array, ...], truth: tuple[jax.Array, ...]) -> list[float]:
    """Relative, of the value and of the gradients of q, k and v."""

    def split(value: jax.Array, gradient: jax.Array) -> list[np.ndarray]:
        each = [value, *(gradient[:, :, i] for i in range(3))]
        return [np.asarray(x, np.float64) for x in each]

    pairs = zip(split(*found), split(*truth), strict=True)
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("frames", LENGTHS)
def test_value_and_gradients_are_the_plain_ones_in_float32(frames: int, rate: float) -> None:
    arguments = draw(frames, jnp.float32)
    found = ours(*arguments, rate)
    assert max(errors(found, theirs(*arguments, rate))) < 1e-5
    alone = attention_kernel.attention(*arguments[:3], rate, True)  # asked for no gradient
    np.testing.assert_array_equal(alone, found[0])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_bfloat16_is_as_exact_as_the_plain_one(rate: float) -> None:
    qkv, lengths, seeds, g = arguments = draw(200, jnp.bfloat16)
    truth = theirs(qkv.astype(jnp.float32), lengths, seeds, g.astype(jnp.float32), rate)
    found, other = (errors(each(*arguments, rate), truth) for each in (ours, theirs))
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


ON_TWO_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_attention_kernel import draw, ours

arguments = draw(64, jnp.float32)
rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
step = jax.jit(lambda *arrays: ours(*arrays, 0.3))
compiled = step.lower(*(jax.device_put(x, rows) for x in arguments)).compile()
assert "all-gather" not in compiled.as_text()
for split, whole in zip(compiled(*(jax.device_put(x, rows) for x in arguments)), step(*arguments)):
    assert split.sharding.is_equivalent_to(rows, split.ndim)
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6)
"""


def test_two_devices_compute_the_same_each_for_its_own_row() -> None:
    subprocess.run([sys.executable, "-c", ON_TWO_DEVICES], cwd=Path(__file__).parent, check=True)
