"""Distances of sequences under dynamic time warping, batched on the device.

The distance of two sequences is the cost of the cheapest path through the lattice of their frames'
distances, divided by the path's number of cells. Of equally cheap ways into a cell the diagonal
comes first, then the step along the second sequence (as fastabx has it): where there are ties, the
distance of (x, y) is not that of (y, x).

F frames of all sequences, D width, S frames of a padded sequence, T sequences on a side of a tile,
G tiles, P = G T T pairs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

DISTANCES = ("angular", "euclidean", "identical")
# acos(a) = sqrt(1 - a) * p(a) on [0, 1] within 2e-8 (Abramowitz and Stegun 4.4.46): XLA's own takes
# longer than everything else here.
_ACOS = (
    *(-0.0012624911, 0.0066700901, -0.0170881256, 0.0308918810),
    *(-0.0501743046, 0.0889789874, -0.2145988016, 1.5707963050),
)


def prepare(frames: ArrayLike, distance: str) -> NDArray[Any]:
    """Check frames and bring them into the form that the distance takes.

    Args:
        frames: floating point [F, D], or for "identical" whole numbers [F] (units).
        distance: "angular" (the angle over pi, 0 to 1; a frame of zeros counts as one of equal
            values), "euclidean" or "identical" (0 or 1).

    Returns:
        Float32 [F', D] or int32 [F'], with rows that mean nothing at the end.

    Raises:
        ValueError: another distance, shape or type, or a value that is not finite.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance = {distance!r}: allowed is {', '.join(DISTANCES)}")
    array = np.asarray(frames)
    if distance == "identical":
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"units: {array.dtype} {array.shape}; due are whole numbers [F]")
        return np.pad(array.astype(np.int32), (0, _rounded(len(array)) - len(array)))
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"frames: {array.dtype} {array.shape}; due is floating point [F, D]")
    array = array.astype(np.float32, copy=False)
    squares = np.einsum("fd,fd->f", array, array)
    if not np.isfinite(squares).all():
        raise ValueError("frames: NaN, infinite or too large values")
    ready = np.zeros((_rounded(len(array)), array.shape[1]), np.float32)
    if distance == "euclidean":
        ready[: len(array)] = array
        return ready
    norm = np.sqrt(squares)[:, None]
    np.divide(array, np.where(norm > 0, norm, 1), out=ready[: len(array)])
    ready[: len(array)][norm[:, 0] == 0] = 1 / np.sqrt(array.shape[1])
    return ready


def _rounded(length: int) -> int:
    """Corpora of about the same size shall share their compilations."""
    step = 1 << max(0, length.bit_length() - 3)
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnames=("size", "distance"))
def tile_distances(
    frames: jax.Array, starts: jax.Array, lengths: jax.Array, *, size: int, distance: str
) -> jax.Array:
    """Distances of all pairs of a row and a column of each tile.

    Args:
        frames: frames from `prepare`, [F, D] or [F].
        starts: int32 [2, G, T], first frames of the rows' and the columns' sequences.
        lengths: int32 [2, G, T], their numbers of frames, 1 to `size`.
        size: S.
        distance: one of `DISTANCES`.

    Returns:
        Float32 [2, G, T, T]: of (row, column), and of (column, row).
    """
    _, tiles, side = starts.shape
    x, y = frames.at[starts[..., None] + jnp.arange(size)].get(mode="clip")  # [G, T, S(, D)]
    flat = (tiles, side * size, *x.shape[3:])
    costs = _COSTS[distance](x.reshape(flat), y.reshape(flat))
    lattices = costs.reshape(tiles, side, size, side, size).transpose(2, 4, 0, 1, 3)
    shape = (tiles, side, side)
    rows = jnp.broadcast_to(lengths[0][:, :, None], shape).reshape(-1)
    columns = jnp.broadcast_to(lengths[1][:, None, :], shape).reshape(-1)
    both = _warp(lattices.reshape(size, size, -1), rows, columns)
    return jnp.stack(both).reshape(2, *shape)


def _angles(x: jax.Array, y: jax.Array) -> jax.Array:
    cosine = jnp.clip(jnp.einsum("grd,gcd->grc", x, y, precision="highest"), -1, 1)
    size = jnp.abs(cosine)
    value = jnp.full_like(size, _ACOS[0])
    for coefficient in _ACOS[1:]:
        value = value * size + coefficient
    angle = jnp.sqrt(1 - size) * value
    return jnp.where(cosine < 0, jnp.pi - angle, angle) / jnp.pi


def _differences(x: jax.Array, y: jax.Array) -> jax.Array:
    # not by products, which lose what nearly equal frames differ by
    return jnp.sqrt(jnp.square(x[:, :, None] - y[:, None]).sum(axis=-1))


def _unequal(x: jax.Array, y: jax.Array) -> jax.Array:
    return (x[:, :, None] != y[:, None]).astype(jnp.float32)


_COSTS = {"angular": _angles, "euclidean": _differences, "identical": _unequal}


def _warp(lattices: jax.Array, rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Path cost over path length of lattices [S, S, P], of which [rows, columns] cells count.

    The lengths of the path that prefers left to up and of the one that prefers up to left are
    carried side by side: the second is the first of the transposed lattice.
    """
    size, _, pairs = lattices.shape
    never, zero = jnp.full(pairs, jnp.inf), jnp.zeros(pairs)

    def next_row(carry: Any, row: Any) -> Any:
        above, done = carry
        i, costs = row
        before = jnp.broadcast_to(jnp.where(i == 0, 0.0, jnp.inf), (pairs,))

        def next_cell(carry: Any, cell: Any) -> Any:
            left, left_a, left_b, corner, corner_a, corner_b, done_a, done_b = carry
            j, cost, up, up_a, up_b = cell
            diagonal = (corner <= left) & (corner <= up)
            cheapest = jnp.where(diagonal, corner, jnp.where(left <= up, left, up))
            total = cost + cheapest
            a = 1 + jnp.where(diagonal, corner_a, jnp.where(left <= up, left_a, up_a))
            b = 1 + jnp.where(diagonal, corner_b, jnp.where(up <= left, up_b, left_b))
            last = (rows - 1 == i) & (columns - 1 == j)
            done_a = jnp.where(last, total / a, done_a)
            done_b = jnp.where(last, total / b, done_b)
            return (total, a, b, up, up_a, up_b, done_a, done_b), (total, a, b)

        start = (never, zero, zero, before, zero, zero, *done)
        end, below = jax.lax.scan(next_cell, start, (jnp.arange(size), costs, *above))
        return (below, end[-2:]), None

    first = (jnp.full((size, pairs), jnp.inf), *[jnp.zeros((size, pairs))] * 2)
    (_, done), _ = jax.lax.scan(next_row, (first, (zero, zero)), (jnp.arange(size), lattices))
    return done
