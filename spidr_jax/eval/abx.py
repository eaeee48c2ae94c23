"""ABX: how often a phone's item is nearer to an item of another phone than to one of its own.

A and X are items of one phone, B of another. Within speakers all three are of one speaker; across
speakers A and B are of one and X of another. Within context all three stand between the same two
phones; with any context they need not. The measure is that of the ZeroSpeech challenge (Nguyen et
al. 2020) as fastabx 0.9 computes it.

C cells; a cell is three groups (A, B, X) of items of one phone, speaker and context.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spidr_jax.eval import tiles
from spidr_jax.eval.cells import (
    Cells,
    Groups,
    across_speakers,
    code,
    fewer_x,
    group_items,
    within_speakers,
)
from spidr_jax.eval.items import Items, Spans

SPEAKERS = ("within", "across")
CONTEXTS = ("within", "any")
_MOST_TRIPLETS = 1 << 24  # compared at once
_MOST_DISTANCES = 1 << 31  # 8 GiB
_Index = NDArray[np.int64]


class AbxError(NamedTuple):
    """The outcome of one task.

    Attributes:
        error: share of triplets (A, B, X) with X nearer to B, 0 to 1 (0.5 is chance), a tie
            counting one half; averaged over cells as `measure` says. NaN without a cell.
        cells: number of cells.
        triplets: number of triplets.
    """

    error: float
    cells: int
    triplets: int


def measure(
    frames: ArrayLike,
    items: Items,
    spans: Spans,
    *,
    distance: str = "angular",
    context: str = "within",
    max_size_group: int | None = None,
    max_x_across: int | None = None,
    seed: int = 0,
) -> dict[str, AbxError]:
    """Measure ABX errors, all from one set of distances.

    Sequences are compared by `warping`. A cell's error is averaged over the cells (contexts, and
    the speakers of X) of each A phone, B phone and speaker of A, then over those speakers, then
    over the ordered pairs of phones; with any context over all cells of a pair of phones, then over
    the pairs. Within speakers A must have two items, and X is never A itself.

    Args:
        frames: floating point [F, D] or whole numbers [F] (units) of all files.
        items: items from `items.read_items`.
        spans: frames from `items.locate`; items without a frame take no part.
        distance: "angular", "euclidean" or "identical".
        context: one of `CONTEXTS`.
        max_size_group: items of a group that are kept, drawn again for each seed; None for all.
        max_x_across: speakers of X that are kept for each A and B across speakers; None for all.
        seed: seed of both draws.

    Returns:
        The errors within and across speakers.

    Raises:
        ValueError: a choice is not allowed, the frames do not fit the distance, or there are so
            many items in a context that their distances would take over 8 GiB.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context = {context!r}: allowed is {' or '.join(CONTEXTS)}")
    if max_size_group is not None and max_size_group < 2:
        raise ValueError(f"max_size_group = {max_size_group}: allowed is 2 or more, or None")
    if max_x_across is not None and max_x_across < 1:
        raise ValueError(f"max_x_across = {max_x_across}: allowed is 1 or more, or None")
    rng = np.random.default_rng(seed)
    groups = group_items(items, np.flatnonzero(spans.length), context, max_size_group, rng)
    within, across = within_speakers(groups), across_speakers(groups)
    if max_x_across is not None:
        across = fewer_x(across, max_x_across, rng)
    used = np.zeros(len(groups.size), bool)
    for role in (*within, *across):
        used[role] = True
    distances = _Distances(frames, spans, groups, used, distance)
    return {
        "within": _error(within, groups, distances, context, symmetric=True),
        "across": _error(across, groups, distances, context, symmetric=False),
    }


class _Distances:
    """Distances of the items of two groups of a context, [C, n, m] for C pairs of groups."""

    def __init__(
        self,
        frames: ArrayLike,
        spans: Spans,
        groups: Groups,
        used: NDArray[np.bool_],
        distance: str,
    ) -> None:
        """Compute those of the groups that are used."""
        # by context: used groups one after another
        context, chosen = groups.context, np.flatnonzero(used)
        chosen = chosen[np.argsort(context[chosen], kind="stable")]
        owner, number = tiles.expand(groups.size[chosen])
        item = groups.order[groups.first[chosen][owner] + number]
        _, home, sizes = np.unique(context[chosen][owner], return_inverse=True, return_counts=True)
        if (total := int((sizes**2).sum())) > _MOST_DISTANCES:
            raise ValueError(
                f"{len(item)} items have {total} distances within their contexts; allowed is "
                f"{_MOST_DISTANCES}: set max_size_group"
            )
        self._flat = tiles.group_distances(
            frames, spans.start[item], spans.length[item], sizes, distance
        )
        start = np.cumsum(groups.size[chosen]) - groups.size[chosen]
        self._base = np.zeros(len(used), np.int64)  # of the context
        self._width = np.zeros(len(used), np.int64)
        self._place = np.zeros(len(used), np.int64)  # of the group's first item in its context
        where = home[start]
        self._base[chosen] = tiles.group_offsets(sizes)[where]
        self._width[chosen] = sizes[where]
        self._place[chosen] = start - (np.cumsum(sizes) - sizes)[where]

    def between(self, x: _Index, some: _Index, y: _Index, m: int) -> NDArray[np.float32]:
        """From n items, by number, of each group x [C] to all m of each group y [C]."""
        rows = (self._place[x, None] + some)[:, :, None]
        columns = (self._place[y, None] + np.arange(m))[:, None, :]
        width = self._width[x][:, None, None]
        found: NDArray[np.float32] = self._flat[
            self._base[x][:, None, None] + rows * width + columns
        ]
        return found


def _error(
    cells: Cells, groups: Groups, distances: _Distances, context: str, symmetric: bool
) -> AbxError:
    if not len(cells.a):
        return AbxError(float("nan"), 0, 0)
    na, nb, nx = (groups.size[role] for role in cells)
    triplets = na * nb * (nx - 1 if symmetric else nx)
    score = _farther(cells, (na, nb, nx), distances, symmetric) / triplets
    pair = code(groups.phone[cells.a], groups.phone[cells.b])
    keys = [pair]
    if context == "within":
        keys.insert(0, code(pair, groups.speaker[cells.a]))
    while keys:
        key = keys.pop(0)
        _, position, number = np.unique(key, return_index=True, return_inverse=True)
        score = np.bincount(number, score) / np.bincount(number)
        keys = [coarser[position] for coarser in keys]
    return AbxError(float(score.mean()), len(cells.a), int(triplets.sum()))


def _farther(
    cells: Cells,
    sizes: tuple[_Index, _Index, _Index],
    distances: _Distances,
    symmetric: bool,
) -> NDArray[np.float64]:
    """For each cell the triplets with A farther from X than B is, ties as one half."""
    found = np.zeros(len(cells.a))
    shape = np.stack(sizes, axis=1)
    order = np.lexsort(shape.T)
    cuts = np.flatnonzero((np.diff(shape[order], axis=0) != 0).any(axis=1)) + 1
    for alike in np.split(order, cuts):
        na, nb, nx = shape[alike[0]].tolist()
        rows = min(nx, max(1, _MOST_TRIPLETS // (na * nb)))
        step = max(1, _MOST_TRIPLETS // (na * nb * rows))
        for at, low in itertools.product(range(0, len(alike), step), range(0, nx, rows)):
            some, row = alike[at : at + step], np.arange(low, min(nx, low + rows))
            to_a = distances.between(cells.x[some], row, cells.a[some], na)
            to_b = distances.between(cells.x[some], row, cells.b[some], nb)
            if symmetric:
                to_a[:, row - low, row] = -np.inf  # X itself is not an A
            left, right = to_a[..., None], to_b[:, :, None]
            more = np.count_nonzero(left > right, axis=(1, 2, 3))
            found[some] += (more + np.count_nonzero(left >= right, axis=(1, 2, 3))) / 2
    return found
