"""Distances of sequences against plain dynamic programming, however they are cut into tiles."""

import math

import numpy as np
import pytest

from spidr_jax.eval import tiles
from spidr_jax.eval.warping import prepare


def warped(cost):
    """Cost of the cheapest path over its length: plain dynamic programming, then the way back."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j, length = rows, columns, 1
    while (i, j) != (1, 1):
        corner, up, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if corner <= left and corner <= up:
            i, j = i - 1, j - 1
        elif left <= up:
            j -= 1
        else:
            i -= 1
        length += 1
    return total[rows, columns] / np.float32(length)


def plain_distance(x, y, distance):
    if distance == "identical":
        cost = x[:, None] != y
    elif distance == "euclidean":
        cost = np.linalg.norm(x[:, None] - y, axis=-1)
    else:
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)]
        cost = np.arccos(np.clip(unit[0] @ unit[1].T, -1, 1)) / math.pi
    return warped(cost.astype(np.float32))


@pytest.fixture(scope="module")
def sequences():
    random = np.random.default_rng(3)
    length = random.choice([1, 2, 3, 5, 9, 14, 23, 40], 60)
    start = random.integers(0, 400, 60)
    return random, start.astype(np.int64), length.astype(np.int64)


@pytest.mark.parametrize("distance", ["angular", "euclidean", "identical"])
def test_distances_are_those_of_plain_dynamic_programming(sequences, distance):
    random, start, length = sequences
    frames = random.standard_normal((460, 7))
    if distance == "identical":
        frames = random.integers(0, 3, 460)
    sizes = np.array([1, 3, 11, 20, 25])
    flat = tiles.group_distances(frames, start, length, sizes, distance)
    assert len(flat) == (sizes**2).sum()
    at = 0
    for first, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        members = [frames[s : s + n] for s, n in zip(start, length, strict=True)]
        members = members[first : first + size]
        found = flat[at : at + size**2].reshape(size, size)
        at += size**2
        expected = [[plain_distance(x, y, distance) for y in members] for x in members]
        # an angle near 0 is the root of what float32 loses of 1
        tolerance = 0 if distance == "identical" else 1e-6 if distance == "euclidean" else 3e-4
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
        if distance == "euclidean":
            np.testing.assert_allclose(found, found.T, rtol=1e-6)


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("compilation", [0, 1 << 60])
def test_tiles_and_batches_do_not_change_the_numbers(monkeypatch, sequences, side, compilation):
    random, start, length = sequences
    units, sizes = random.integers(0, 3, 460), np.array([1, 3, 11, 20, 25])
    expected = tiles.group_distances(units, start, length, sizes, "identical")
    limits = tiles._CPU._replace(pairs=600, compilation=compilation)
    monkeypatch.setattr(tiles, "_CPU", limits)
    monkeypatch.setattr(tiles, "_SIDES", (side,))
    found = tiles.group_distances(units, start, length, sizes, "identical")
    np.testing.assert_array_equal(found, expected)


def test_padding_sizes_are_the_cheapest():
    longest = np.array([4] * 100 + [9] * 100 + [60])
    assert tiles._sizes(longest, 0) == [4, 12, 64]
    assert tiles._sizes(longest, 10**9) == [64]
    # 12 for the first hundred costs 12,800 cells more than 4; 64 for all 800,000 more
    assert tiles._sizes(longest, 20_000) == [12, 64]


def test_frames_of_zeros_count_as_equal_values():
    ready = prepare(np.array([[0, 0, 0, 0], [3, 0, 4, 0]], np.float32), "angular")
    np.testing.assert_allclose(ready[:2], [[0.5] * 4, [0.6, 0, 0.8, 0]])


@pytest.mark.parametrize(
    ("frames", "distance", "reason"),
    [
        (np.zeros((3, 2)), "cosine", "distance = 'cosine': allowed is angular, euclidean, ident"),
        (np.zeros((3, 2), int), "angular", r"frames: int64 \(3, 2\); due is floating point"),
        (np.zeros(3), "angular", r"frames: float64 \(3,\); due is floating point \[F, D\]"),
        (np.zeros((3, 2)), "identical", r"units: float64 \(3, 2\); due are whole numbers \[F\]"),
        (np.full((3, 2), np.nan), "euclidean", "frames: NaN, infinite or too large values"),
        (np.full((3, 2), np.inf), "angular", "frames: NaN, infinite or too large values"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames, distance, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        prepare(frames, distance)
