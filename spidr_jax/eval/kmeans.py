"""k-means: units of any features, fitted on the device, the same for the same seed.

N frames, D width, K clusters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_FRAMES = 100_000
_MAX_ROUNDS = 100
_ENOUGH = 1e-4  # of the distances, that a round must gain
_BLOCK = 4_096


def fit(
    frames: ArrayLike, clusters: int, seed: int = 0, max_frames: int = MAX_FRAMES
) -> NDArray[np.float32]:
    """Fit centres by Lloyd's rounds from a k-means++ start (Arthur and Vassilvitskii 2007).

    It ends when a round lowers the mean square distance by less than 0.01 %, or after 100. A
    cluster that loses all its frames keeps its centre.

    Args:
        frames: [N, D].
        clusters: K.
        seed: of the start, and of the draw of frames.
        max_frames: of more frames, so many are drawn.

    Returns:
        Centres [K, D].

    Raises:
        ValueError: there are fewer frames than clusters, or K is not positive.
    """
    array = np.asanyarray(frames)  # a memory map is read where it is drawn from
    if not 1 <= clusters <= len(array):
        raise ValueError(f"kmeans = {clusters}: allowed is 1 to {len(array)}, the number of frames")
    if len(array) > max_frames:
        drawn = np.random.default_rng(seed).choice(len(array), max_frames, replace=False)
        array = array[np.sort(drawn)]
    data = np.asarray(array, np.float32)
    mean = data.mean(axis=0)  # far from zero, distances by products lose digits
    blocks, weights = _blocks(data - mean)
    centres = _start(blocks, weights, jax.random.key(seed), clusters=clusters)
    before = np.inf
    for _ in range(_MAX_ROUNDS):
        centres, spread = _round(blocks, weights, centres)
        if (now := float(spread)) >= before * (1 - _ENOUGH):
            break
        before = now
    return np.asarray(centres) + mean


def assign(frames: ArrayLike, centres: NDArray[np.float32]) -> NDArray[np.int32]:
    """The nearest centre of each frame.

    Args:
        frames: [N, D].
        centres: [K, D], of `fit`.

    Returns:
        Numbers of centres [N].
    """
    mean = centres.mean(axis=0)
    array = np.asanyarray(frames)
    parts = []
    for at in range(0, len(array), 64 * _BLOCK):
        part = np.asarray(array[at : at + 64 * _BLOCK], np.float32)
        blocks, _ = _blocks(part - mean)
        found = _nearest_of_all(blocks, jnp.asarray(centres - mean))
        parts.append(np.asarray(found).reshape(-1)[: len(part)])
    return np.concatenate(parts).astype(np.int32)


def _blocks(data: NDArray[np.float32]) -> tuple[jax.Array, jax.Array]:
    """Frames [blocks, block, D] and which of them are real: 1, else 0."""
    count = -(-len(data) // _BLOCK)
    padded = np.pad(data, ((0, count * _BLOCK - len(data)), (0, 0)))
    weights = np.arange(count * _BLOCK) < len(data)
    shape = (count, _BLOCK)
    return jnp.asarray(padded.reshape(*shape, -1)), jnp.asarray(weights.reshape(shape), jnp.float32)


def _nearest(block: jax.Array, centres: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Number of the nearest centre, and the square of its distance."""
    product = jnp.einsum("nd,kd->nk", block, centres, precision="highest")
    distance = jnp.square(centres).sum(axis=1) - 2 * product
    return distance.argmin(axis=1), distance.min(axis=1) + jnp.square(block).sum(axis=1)


@jax.jit
def _nearest_of_all(blocks: jax.Array, centres: jax.Array) -> jax.Array:
    return jax.lax.map(lambda block: _nearest(block, centres)[0], blocks)


@functools.partial(jax.jit, static_argnames="clusters")
def _start(blocks: jax.Array, weights: jax.Array, key: jax.Array, *, clusters: int) -> jax.Array:
    """Frames drawn one after another, each as probably as its square distance to those before."""
    data, real = blocks.reshape(-1, blocks.shape[-1]), weights.reshape(-1)
    keys = jax.random.split(key, clusters)

    def draw(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, distance = carry
        chosen = data[jax.random.categorical(keys[i], jnp.log(distance))]
        nearer = jnp.minimum(distance, jnp.square(data - chosen).sum(axis=1) * real)
        # where every frame has been drawn, any is as good
        return centres.at[i].set(chosen), jnp.where(nearer.sum() > 0, nearer, real)

    empty = jnp.zeros((clusters, data.shape[1]))
    # at first every frame is as probable; one is as far as another
    first = data[jax.random.categorical(keys[0], jnp.log(real))]
    distance = jnp.square(data - first).sum(axis=1) * real
    return jax.lax.fori_loop(1, clusters, draw, (empty.at[0].set(first), distance))[0]


@jax.jit
def _round(
    blocks: jax.Array, weights: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """New centres, and the mean square distance to the old ones."""

    def add(carry: tuple[jax.Array, ...], part: tuple[jax.Array, jax.Array]) -> tuple:
        sums, counts, spread = carry
        block, real = part
        number, distance = _nearest(block, centres)
        # products, as scattered sums have no fixed order on a GPU
        member = jax.nn.one_hot(number, len(centres)) * real[:, None]
        sums += jnp.einsum("nk,nd->kd", member, block, precision="highest")
        return (sums, counts + member.sum(axis=0), spread + (distance * real).sum()), None

    zero = (jnp.zeros_like(centres), jnp.zeros(len(centres)), jnp.zeros(()))
    (sums, counts, spread), _ = jax.lax.scan(add, zero, (blocks, weights))
    moved = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, moved, centres), spread / weights.sum()
