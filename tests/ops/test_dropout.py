"""Hashed dropout masks: the share kept, and independence between whatever there is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.model.config import ModelConfig
from spidr_jax.model.noise import at, draw_noise
from spidr_jax.ops import dropout

ROWS, SHAPE = 16, (16, 120, 256)


def seeds(key: int, rows: int = ROWS) -> jax.Array:
    return jax.random.bits(jax.random.key(key), (rows, 2), jnp.uint32)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks, in its standard deviations under independence."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    return float((a * b).mean() / (a.std() * b.std()) * np.sqrt(a.size))


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return np.asarray(dropout.keep_mask(seeds(0), SHAPE, 0.1))


HIDDEN = [(0, 1, 2), (1, 2), (0, 2), (0, 1)]  # axes: all, of a row, a frame, a channel
HEADS = [(0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (3,), (2,), (1, 2), (0, 1, 2), (0, 1, 3)]


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("draw", "shape", "groups"),
    [
        (dropout.keep_mask, SHAPE, HIDDEN),
        (dropout.attention_keep_mask, (3, 4, 700, 700), HEADS),
    ],
)
def test_the_share_kept_is_right_in_all_and_along_every_axis(
    draw: Any, shape: tuple[int, ...], groups: list[tuple[int, ...]], rate: float
) -> None:
    kept = np.asarray(draw(seeds(1, shape[0]), shape, rate))
    for axes in groups:
        number = np.prod([shape[axis] for axis in axes])
        scores = (kept.mean(axis=axes) - (1 - rate)) / np.sqrt(rate * (1 - rate) / number)
        assert np.abs(scores).max() < 5
        if np.size(scores) > 10:
            spread = 0.3 if scores.size <= 100 else 0.15
            assert abs(scores.std() - 1) < spread  # neither clumped nor evened out


@pytest.mark.parametrize("shift", [1, 2, 3, 16, 64, 255, 256, 257, 512])
def test_neighbours_at_any_distance_are_independent(mask: np.ndarray, shift: int) -> None:
    flat = mask.reshape(ROWS, -1)
    assert abs(correlation(flat[:, shift:], flat[:, :-shift])) < 4.5


def test_rows_are_independent(mask: np.ndarray) -> None:
    scores = [correlation(mask[i], mask[j]) for i in range(ROWS) for j in range(i)]
    assert np.abs(scores).max() < 4.5
    assert 0.7 < np.std(scores) < 1.3


def test_rows_whose_first_seeds_overlap_are_independent() -> None:
    """A common case: of 800 rows and places of a step, hundreds of pairs overlap."""
    draw, shift, rows = np.random.default_rng(0), 777, 40
    first = draw.integers(0, 2**32, rows, np.uint32)
    second = draw.integers(0, 2**32, (2, rows), np.uint32)
    masks = [
        np.asarray(dropout.keep_mask(jnp.stack([f, s], axis=1), (rows, 100_000), 0.1))
        for f, s in ((first, second[0]), (first - np.uint32(shift), second[1]))
    ]
    pairs = zip(masks[0][:, :-shift], masks[1][:, shift:], strict=True)
    scores = [correlation(a, b) for a, b in pairs]
    assert np.abs(scores).max() < 4.5
    assert 0.6 < np.std(scores) < 1.5


def test_steps_layers_and_sites_are_independent() -> None:
    config = ModelConfig(encoder_num_layers=2, num_codebooks=2)
    masks = []
    for step in range(2):
        key = jax.random.fold_in(jax.random.key(0), step)
        noise = draw_noise(config, key, 4)
        for parent in (noise.seeds, at(noise.seeds, "layers_0"), at(noise.seeds, "layers_1")):
            sites = [at(parent, name) for name in ("attention", "hidden", "feed_forward")]
            masks += [np.asarray(dropout.keep_mask(seeds, (4, 50, 64), 0.1)) for seeds in sites]
    assert len(masks) == 2 * 9
    scores = [correlation(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    assert np.abs(scores).max() < 4.5
    assert 0.8 < np.std(scores) < 1.2


def correlations(rows: np.ndarray) -> np.ndarray:
    """Of all pairs of a mask's rows, in standard deviations, without rows' and columns' shares.

    Their variance is the mean parity of what is kept where two rows and two columns meet.
    """
    x = rows.astype(np.float32)
    x = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
    x /= x.std(axis=1, keepdims=True)
    return ((x @ x.T)[np.triu_indices(len(x), 1)] / np.sqrt(x.shape[1])).astype(np.float64)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """Of one utterance: 5 heads, 600 frames."""
    return np.asarray(dropout.attention_keep_mask(seeds(5, 1), (1, 5, 600, 600), 0.1))[0]


@pytest.mark.parametrize("of", ["queries", "keys"])
def test_all_pairs_of_queries_and_of_keys_are_as_independent_as_draws(
    weights: np.ndarray, of: str
) -> None:
    """Queries of all heads. Draws stand beside: sums of rare events have long tails."""
    draws = np.random.default_rng(0).random(weights.shape) >= 0.1
    found, expected = (
        correlations(
            x.reshape(-1, 600) if of == "queries" else x.transpose(2, 0, 1).reshape(600, -1)
        )
        for x in (weights, draws)
    )
    assert abs(found.std() / expected.std() - 1) < 4 / np.sqrt(found.size)
    assert abs(found.mean() - expected.mean()) < 6 / np.sqrt(found.size)
    for largest in (np.max, lambda x: -np.min(x)):
        assert largest(found) < 1.15 * largest(expected)


def test_near_weights_and_mirrored_ones_are_independent(weights: np.ndarray) -> None:
    for queries in range(4):
        for keys in range(4):
            if queries or keys:
                a = weights[:, queries:, keys:]
                b = weights[:, : 600 - queries, : 600 - keys]
                assert abs(correlation(a, b)) < 4.5, (queries, keys)
    lower = np.tril_indices(600, -1)
    for head in weights:
        assert abs(correlation(head[lower], head.T[lower])) < 4.5
        assert abs(correlation(head, head[::-1])) < 4.5


def test_seeds_that_differ_in_one_bit_utterances_and_heads_have_independent_weights() -> None:
    base = np.random.default_rng(1).integers(2**32, size=2, dtype=np.uint32)
    near = [base ^ np.array([1 << bit, 0], np.uint32) for bit in range(32)]
    near += [base ^ np.array([0, 1 << bit], np.uint32) for bit in range(32)]
    all_seeds = np.stack([base, *near, *seeds(7, 12)])
    kept = np.asarray(dropout.attention_keep_mask(all_seeds, (77, 2, 128, 128), 0.1))
    masks = kept.reshape(77 * 2, 128 * 128)
    scores = correlations(masks)
    assert np.abs(scores).max() < 5
    assert 0.94 < np.std(scores) < 1.06


def mixed(x: int) -> int:
    """Wellons' lowbias32, in whole numbers."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        x = (x % 2**32 ^ x % 2**32 >> shift) * factor
    return x % 2**32


def test_masks_are_the_hashes_of_places_and_so_stay_the_same_from_version_to_version() -> None:
    pairs, least = np.asarray(seeds(8, 3)).tolist(), round(0.3 * 2**32)
    hashes = [[mixed(i + a) * (b | 1) % 2**32 for i in range(40)] for a, b in pairs]
    found = dropout.keep_mask(seeds(8, 3), (3, 5, 8), 0.3)
    np.testing.assert_array_equal(found, np.reshape(hashes, (3, 5, 8)) >= least)
    factors = [[mixed(mixed(i + a) + b) | 1 for i in range(30)] for a, b in pairs]
    queries, keys = np.split(np.reshape(factors, (3, 3, 10)), [2], axis=1)
    products = queries[..., None] * keys[:, :, None] % 2**32
    found = dropout.attention_keep_mask(seeds(8, 3), (3, 2, 10, 10), 0.3)
    np.testing.assert_array_equal(found, products >= least)


def test_what_is_kept_is_scaled_and_the_mean_stays() -> None:
    x = jnp.full(SHAPE, 2.0)
    dropped = np.asarray(dropout.dropout(x, seeds(3), 0.2))
    assert set(np.unique(dropped)) == {0.0, 2.5}
    assert abs(dropped.mean() - 2) < 0.01


def test_bfloat16_is_scaled_by_the_rate_and_not_by_its_rounding() -> None:
    x = jnp.linspace(1, 2, 2 * 120 * 256).reshape(2, 120, 256).astype(jnp.bfloat16)
    dropped = np.asarray(dropout.apply_dropout(x, seeds(4, 2), 0.1), np.float64)
    ratios = dropped[dropped > 0] / np.asarray(x, np.float64)[dropped > 0]
    assert abs(ratios.mean() - 1 / 0.9) < 3e-4  # 0.9 as bfloat16 is 0.8984: 2e-3 off


def test_without_seeds_or_rate_nothing_changes() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    np.testing.assert_array_equal(dropout.dropout(x, None, 0.5), x)
    np.testing.assert_array_equal(dropout.dropout(x, seeds(0, 2), 0.0), x)
