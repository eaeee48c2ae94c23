"""Distances of all pairs of sequences within each of many groups, in batches of few shapes.

A group's sequences are sorted by length and cut into chunks; a tile is a pair of chunks. Tiles of
about the same length, from whichever groups, fill batches of one shape.

N sequences, n of one group, T sequences of a chunk, S frames of a padded sequence, G tiles.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from spidr_jax.eval import warping
from spidr_jax.ops import platform

_SIDES = (4, 8, 16)  # T
_Index = NDArray[np.int64]


class _Limits(NamedTuple):
    """Limits of a batch (on a CPU, those of its caches), and the cost of a compilation.

    Attributes:
        pairs: number of pairs of sequences.
        cells: number of cells of their lattices.
        numbers: number of values of their frames.
        compilation: its time, in the time that one number of a frame takes in one cell.
    """

    pairs: int
    cells: int
    numbers: int
    compilation: int


_CPU = _Limits(1 << 12, 1 << 20, 1 << 20, 1 << 33)
_ACCELERATOR = _Limits(1 << 18, 1 << 26, 1 << 28, 1 << 40)
_CELL = 200  # numbers of a frame that take as long as the rest of what is done in a cell
_PAIR = 50  # numbers of a frame whose gathering takes as long as the rest of a pair


def group_offsets(sizes: _Index) -> _Index:
    """Where each group's n x n distances begin in the result of `group_distances`, and its end."""
    return np.concatenate([[0], np.cumsum(sizes**2)])


def group_distances(
    frames: ArrayLike, start: _Index, length: _Index, sizes: _Index, distance: str
) -> NDArray[np.float32]:
    """Distance of every sequence of a group to every one of the same group.

    Args:
        frames: [F, D], or units [F], as `warping.prepare` takes them.
        start: [N], first frame of each sequence; those of a group stand together.
        length: [N], their frames, at least 1.
        sizes: n of each group; they add up to N.
        distance: one of `warping.DISTANCES`.

    Returns:
        For one group after another the distances [n, n] of (row, column), flat.

    Raises:
        ValueError: as `warping.prepare`.
    """
    ready = jnp.asarray(warping.prepare(frames, distance))
    offsets, (group, within) = group_offsets(sizes), expand(sizes)
    # one slot more, for what stands in a tile only to fill it
    flat = np.zeros(offsets[-1] + 1, np.float32)
    for members, values in _computed(ready, start, length, group, sizes, distance):
        row, column = members[:, 0, :, None], members[:, 1, None, :]
        base, width = offsets[group[row]], sizes[group[row]]
        real = (row >= 0) & (column >= 0)
        there = base + within[row] * width + within[column]
        back = base + within[column] * width + within[row]
        flat[np.where(real, there, offsets[-1])] = values[0]
        flat[np.where(real, back, offsets[-1])] = values[1]
    return flat[:-1]


def expand(counts: _Index) -> tuple[_Index, _Index]:
    """The owner 0, 1, ... of each of its rows, as many as it has, and their numbers in it."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _computed(
    frames: jax.Array, start: _Index, length: _Index, group: _Index, sizes: _Index, distance: str
) -> Iterator[tuple[_Index, NDArray[np.float32]]]:
    """Sequences [g, 2, T] of the rows and columns of some tiles with their distances [2, g, T, T].

    Where a chunk is not full, its sequence is -1.
    """
    limits = platform.choose(_CPU, _ACCELERATOR)
    width = frames.shape[1] if frames.ndim == 2 else 1
    side = _side(sizes, width)
    members = _tiles(group, length, side)
    longest = np.where(members >= 0, length[members], 0).max(axis=(1, 2), initial=0)
    waiting: list[tuple[_Index, jax.Array]] = []
    lower = 0
    for size in _sizes(longest, limits.compilation // (side**2 * (_CELL + width))):
        tiles = members[(longest > lower) & (longest <= size)]
        lower = size
        most = (
            limits.pairs // side**2,
            limits.cells // (side * size) ** 2,
            limits.numbers // (2 * side * size * width),
        )
        count = max(1, min(most))
        for at in range(0, len(tiles), count):
            some = tiles[at : at + count]
            padded = np.pad(some, ((0, count - len(some)), (0, 0), (0, 0)), constant_values=-1)
            index = padded.transpose(1, 0, 2)
            values = warping.tile_distances(
                frames,
                np.where(index >= 0, start[index], 0).astype(np.int32),
                np.where(index >= 0, length[index], 1).astype(np.int32),
                size=size,
                distance=distance,
            )
            waiting.append((some, values))
            if len(waiting) > 2:  # the device computes while the host fetches
                yield _fetched(*waiting.pop(0))
    for some, values in waiting:
        yield _fetched(some, values)


def _fetched(members: _Index, values: jax.Array) -> tuple[_Index, NDArray[np.float32]]:
    return members, np.asarray(values)[:, : len(members)]


def _side(sizes: _Index, width: int) -> int:
    """The T that is the cheapest: large tiles are gathered once for many pairs, small ones fit."""

    def cost(side: int) -> float:
        chunks = -(-sizes // side)
        return float((chunks * (chunks + 1)).sum() * side**2 * (1 + width / (_PAIR * side)))

    return min(_SIDES, key=cost)


def _tiles(group: _Index, length: _Index, side: int) -> _Index:
    """All pairs of chunks of one group, each once, as sequences [g, 2, T]."""
    ordered = np.lexsort((length, group))
    home, position = expand(np.bincount(group))
    chunks = -(-np.bincount(group) // side)
    chunk = (np.cumsum(chunks) - chunks)[home] + position // side
    table = np.full((chunks.sum(), side), -1, np.int64)
    table[chunk, position % side] = ordered
    owner, number = expand(chunks)
    first, later = expand(chunks[owner] - number)
    return np.stack([table[first], table[first + later]], axis=1)


def _sizes(longest: _Index, compilation: int) -> list[int]:
    """The S that tiles are padded to, rising: the cheapest ones, by dynamic programming.

    One more S costs `compilation` lattice cells of one pair of each tile.
    """
    levels, counts = np.unique([_round_up(int(each)) for each in longest], return_counts=True)
    best, chosen = [0.0], [list[int]()]
    for k, level in enumerate(levels):
        costs = [
            best[j] + compilation + float(counts[j : k + 1].sum()) * level**2 for j in range(k + 1)
        ]
        j = int(np.argmin(costs))
        best.append(costs[j])
        chosen.append([*chosen[j], int(level)])
    return chosen[-1]


def _round_up(length: int) -> int:
    """The least of 4, 6, 8, 12, 16, 24, ... that is not less."""
    power = max(4, 1 << (length - 1).bit_length())
    return power * 3 // 4 if 4 < length <= power * 3 // 4 else power
