"""ABX: how often a phone's item is nearer to an item of another phone than to one of its own.

A and X are items of one phone, B of another. Within speakers all three are of one speaker; across
speakers A and B are of one and X of another. Within context all three stand between the same two
phones; with any context they need not. The measure is that of the ZeroSpeech challenge (Nguyen et
al. 2020) as fastabx 0.9 computes it.

n items; a cell is three groups (A, B, X) of items of one phone, speaker and context.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spidr_jax.eval import tiles
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
        cells: how many there are.
        triplets: how many there are.
    """

    error: float
    cells: int
    triplets: int


class _Groups(NamedTuple):
    """Items of one phone, speaker and context, together in `order`.

    Attributes:
        order: [m] items, group by group.
        first: where a group begins in `order`.
        size: its number of items.
        phone, speaker, context: its labels, as numbers.
    """

    order: _Index
    first: _Index
    size: _Index
    phone: _Index
    speaker: _Index
    context: _Index


class _Cells(NamedTuple):
    """Groups of the A, B and X of each cell."""

    a: _Index
    b: _Index
    x: _Index


def measure(
    frames: ArrayLike,
    items: Items,
    spans: Spans,
    *,
    distance: str = "angular",
    speakers: Sequence[str] = SPEAKERS,
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
        items: of `items.read_items`.
        spans: of `items.locate`; items without a frame take no part.
        distance: "angular", "euclidean" or "identical".
        speakers: some of `SPEAKERS`: the tasks.
        context: one of `CONTEXTS`.
        max_size_group: items of a group that are kept, drawn anew for each seed; None for all.
        max_x_across: speakers of X that are kept for each A and B across speakers; None for all.
        seed: of both draws.

    Returns:
        The error of each task.

    Raises:
        ValueError: a choice is not allowed, the frames do not fit the distance, or there are so
            many items in a context that their distances would take over 8 GiB.
    """
    _check(speakers, context, max_size_group, max_x_across)
    rng = np.random.default_rng(seed)
    groups = _group(items, np.flatnonzero(spans.length), context, max_size_group, rng)
    cells = {"within": _cells_within, "across": _cells_across}
    tasks = {name: cells[name](groups) for name in speakers}
    if "across" in tasks and max_x_across is not None:
        tasks["across"] = _fewer_x(tasks["across"], max_x_across, rng)
    domain = _domains(groups, together="across" in tasks)
    used = np.zeros(len(groups.size), bool)
    for task in tasks.values():
        for role in task:
            used[role] = True
    distances = _Distances(frames, spans, groups, domain, used, distance)
    return {
        name: _error(task, groups, distances, context, symmetric=name == "within")
        for name, task in tasks.items()
    }


def _check(
    speakers: Sequence[str], context: str, max_size_group: int | None, max_x_across: int | None
) -> None:
    for name in speakers:
        if name not in SPEAKERS:
            raise ValueError(f"speakers = {name!r}: allowed is {' or '.join(SPEAKERS)}")
    if context not in CONTEXTS:
        raise ValueError(f"context = {context!r}: allowed is {' or '.join(CONTEXTS)}")
    if max_size_group is not None and max_size_group < 2:
        raise ValueError(f"max_size_group = {max_size_group}: allowed is 2 or more, or None")
    if max_x_across is not None and max_x_across < 1:
        raise ValueError(f"max_x_across = {max_x_across}: allowed is 1 or more, or None")


def _numbers(*columns: NDArray[np.str_]) -> _Index:
    """Number the different rows of some columns."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        names, numbers = np.unique(column, return_inverse=True)
        key = np.unique(key * len(names) + numbers, return_inverse=True)[1]
    return key


def _group(
    items: Items, kept: _Index, context: str, most: int | None, rng: np.random.Generator
) -> _Groups:
    between = items.previous, items.following
    around = _numbers(*between) if context == "within" else np.zeros(len(items.phone), np.int64)
    phone, speaker = _numbers(items.phone), _numbers(items.speaker)
    # the draw sorts each group, and its first ones stay
    draw = rng.random(len(kept)) if most is not None else np.zeros(len(kept))
    labels = (around[kept], speaker[kept], phone[kept])
    order = kept[np.lexsort((draw, *labels[::-1]))]
    labels = (around[order], speaker[order], phone[order])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for label in labels:
        new[1:] |= label[1:] != label[:-1]
    first = np.flatnonzero(new)
    size = np.diff(np.append(first, len(order)))
    contexts, speakers, phones = (label[first] for label in labels)
    if most is not None:
        order = order[tiles.expand(size)[1] < most]
        size = np.minimum(size, most)
        first = np.cumsum(size) - size
    return _Groups(order, first, size, phones, speakers, contexts)


def _domains(groups: _Groups, together: bool) -> _Index:
    """Number the sets of groups that are compared: of a context, or of a speaker in it."""
    if together:
        return groups.context
    return _code(groups.context, groups.speaker)


def _cells_within(groups: _Groups) -> _Cells:
    a, b = _pairs(groups)
    enough = groups.size[a] >= 2
    return _Cells(a[enough], b[enough], a[enough])


def _cells_across(groups: _Groups) -> _Cells:
    a, b = _pairs(groups)
    owner, x = _same(_code(groups.context, groups.phone), a)
    other = groups.speaker[x] != groups.speaker[a[owner]]
    return _Cells(a[owner][other], b[owner][other], x[other])


def _pairs(groups: _Groups) -> tuple[_Index, _Index]:
    """Groups (A, B) of one context and speaker, and of different phones."""
    block = _domains(groups, together=False)
    a, b = _same(block, np.arange(len(block)))
    different = a != b
    return a[different], b[different]


def _same(key: _Index, asked: _Index) -> tuple[_Index, _Index]:
    """For each group asked for, all groups with its key: the number of the question, the group."""
    by_key = np.argsort(key, kind="stable")
    ordered = key[by_key]
    low = np.searchsorted(ordered, key[asked], "left")
    owner, number = tiles.expand(np.searchsorted(ordered, key[asked], "right") - low)
    return owner, by_key[low[owner] + number]


def _fewer_x(cells: _Cells, most: int, rng: np.random.Generator) -> _Cells:
    """Keep the cells of some X for each (A, B), drawn at random."""
    order = np.lexsort((rng.random(len(cells.a)), cells.b, cells.a))
    a, b = cells.a[order], cells.b[order]
    new = np.append(True, (a[1:] != a[:-1]) | (b[1:] != b[:-1]))[: len(a)]
    _, number = tiles.expand(np.diff(np.append(np.flatnonzero(new), len(a))))
    return _Cells(*(role[order][number < most] for role in cells))


class _Distances:
    """Distances of the items of two groups of a domain, [C, n, m] for C pairs of groups."""

    def __init__(
        self,
        frames: ArrayLike,
        spans: Spans,
        groups: _Groups,
        domain: _Index,
        used: NDArray[np.bool_],
        distance: str,
    ) -> None:
        """Compute those of the groups that are used."""
        # by domain: used groups one after another
        chosen = np.flatnonzero(used)
        chosen = chosen[np.argsort(domain[chosen], kind="stable")]
        owner, number = tiles.expand(groups.size[chosen])
        item = groups.order[groups.first[chosen][owner] + number]
        _, home, sizes = np.unique(domain[chosen][owner], return_inverse=True, return_counts=True)
        if (total := int((sizes**2).sum())) > _MOST_DISTANCES:
            raise ValueError(
                f"{len(item)} items have {total} distances within their contexts; allowed is "
                f"{_MOST_DISTANCES}: set max_size_group"
            )
        self._flat = tiles.group_distances(
            frames, spans.start[item], spans.length[item], sizes, distance
        )
        start = np.cumsum(groups.size[chosen]) - groups.size[chosen]
        self._base = np.zeros(len(used), np.int64)  # of the domain
        self._width = np.zeros(len(used), np.int64)
        self._place = np.zeros(len(used), np.int64)  # of the group's first item in its domain
        where = home[start]
        self._base[chosen] = tiles.group_offsets(sizes)[where]
        self._width[chosen] = sizes[where]
        self._place[chosen] = start - (np.cumsum(sizes) - sizes)[where]

    def between(self, x: _Index, y: _Index, n: int, m: int) -> NDArray[np.float32]:
        """From the n items of each group x [C] to the m items of each group y [C]."""
        rows = (self._place[x, None] + np.arange(n))[:, :, None]
        columns = (self._place[y, None] + np.arange(m))[:, None, :]
        width = self._width[x][:, None, None]
        found: NDArray[np.float32] = self._flat[
            self._base[x][:, None, None] + rows * width + columns
        ]
        return found


def _error(
    cells: _Cells, groups: _Groups, distances: _Distances, context: str, symmetric: bool
) -> AbxError:
    if not len(cells.a):
        return AbxError(float("nan"), 0, 0)
    na, nb, nx = (groups.size[role] for role in cells)
    triplets = na * nb * (nx - 1 if symmetric else nx)
    score = _farther(cells, (na, nb, nx), distances, symmetric) / triplets
    pair = _code(groups.phone[cells.a], groups.phone[cells.b])
    keys = [pair]
    if context == "within":
        keys.insert(0, _code(pair, groups.speaker[cells.a]))
    while keys:
        key = keys.pop(0)
        _, position, number = np.unique(key, return_index=True, return_inverse=True)
        score = np.bincount(number, score) / np.bincount(number)
        keys = [coarser[position] for coarser in keys]
    return AbxError(float(score.mean()), len(cells.a), int(triplets.sum()))


def _code(major: _Index, minor: _Index) -> _Index:
    """One number for each pair of numbers."""
    return major * (minor.max(initial=0) + 1) + minor


def _farther(
    cells: _Cells,
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
        step = max(1, _MOST_TRIPLETS // (na * nb * nx))
        for at in range(0, len(alike), step):
            some = alike[at : at + step]
            to_a = distances.between(cells.x[some], cells.a[some], nx, na)
            to_b = distances.between(cells.x[some], cells.b[some], nx, nb)
            if symmetric:
                to_a[:, np.arange(na), np.arange(na)] = -np.inf  # X itself is not an A
            left, right = to_a[..., None], to_b[:, :, None]
            more = np.count_nonzero(left > right, axis=(1, 2, 3))
            found[some] = (more + np.count_nonzero(left >= right, axis=(1, 2, 3))) / 2
    return found
