"""Cells of an ABX task: which groups of items are A, B and X."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spidr_jax.eval import tiles
from spidr_jax.eval.items import Items

_Index = NDArray[np.int64]


class Groups(NamedTuple):
    """Groups of the items of one phone, speaker and context.

    Attributes:
        order: items, group by group.
        first: where each group begins in `order`.
        size: its number of items.
        phone: its label as a number, and so are speaker and context.
    """

    order: _Index
    first: _Index
    size: _Index
    phone: _Index
    speaker: _Index
    context: _Index


class Cells(NamedTuple):
    """Groups of the A, B and X of each cell."""

    a: _Index
    b: _Index
    x: _Index


def group_items(
    items: Items, kept: _Index, context: str, most: int | None, rng: np.random.Generator
) -> Groups:
    """Group items.

    Args:
        items: all items.
        kept: the numbers of those that take part.
        context: "within", or "any" for groups of a phone and speaker alone.
        most: items of a group that are drawn where it has more; None for all.
        rng: random generator of the draw.
    """
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
    return Groups(order, first, size, phones, speakers, contexts)


def _numbers(*columns: NDArray[np.str_]) -> _Index:
    """Number the different rows of some columns."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        names, numbers = np.unique(column, return_inverse=True)
        key = np.unique(key * len(names) + numbers, return_inverse=True)[1]
    return key


def within_speakers(groups: Groups) -> Cells:
    """X is of the group of A, which has two items or more; B of another phone."""
    a, b = _pairs(groups)
    enough = groups.size[a] >= 2
    return Cells(a[enough], b[enough], a[enough])


def across_speakers(groups: Groups) -> Cells:
    """X is of the phone and context of A and of another speaker; B of another phone than A."""
    a, b = _pairs(groups)
    owner, x = _same(code(groups.context, groups.phone), a)
    other = groups.speaker[x] != groups.speaker[a[owner]]
    return Cells(a[owner][other], b[owner][other], x[other])


def _pairs(groups: Groups) -> tuple[_Index, _Index]:
    """Groups (A, B) of one context and speaker, and of different phones."""
    block = code(groups.context, groups.speaker)
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


def fewer_x(cells: Cells, most: int, rng: np.random.Generator) -> Cells:
    """Keep the cells of some X for each (A, B), drawn at random."""
    order = np.lexsort((rng.random(len(cells.a)), cells.b, cells.a))
    a, b = cells.a[order], cells.b[order]
    new = np.append(True, (a[1:] != a[:-1]) | (b[1:] != b[:-1]))[: len(a)]
    _, number = tiles.expand(np.diff(np.append(np.flatnonzero(new), len(a))))
    return Cells(*(role[order][number < most] for role in cells))


def code(major: _Index, minor: _Index) -> _Index:
    """One number for each pair of numbers."""
    return major * (minor.max(initial=0) + 1) + minor
