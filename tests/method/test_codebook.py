"""Codebooks: nearest codes and decayed sums, against values worked out by hand or in numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.method import codebook
from spidr_jax.method.codebook import CodebookState


def test_fresh_codes_are_standardised_over_the_codes_and_counts_are_one() -> None:
    state = codebook.init(jax.random.key(0), 3, 64, 10)
    sums = np.asarray(state.sums, np.float64)
    assert sums.shape == (3, 64, 10)
    np.testing.assert_allclose(sums.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(sums.std(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(state.counts, np.ones((3, 64)))
    assert np.abs(sums[0] - sums[1]).max() > 0.1


def test_a_frame_gets_the_code_that_is_nearest_after_division_by_its_count() -> None:
    sums = jnp.array([[[4.0, 0.0], [0.0, 3.0]]])
    counts = jnp.array([[4.0, 1.0]])  # codes (1, 0) and (0, 3)
    targets = jnp.array([[[0.9, 0.1], [0.0, 2.0], [3.5, 0.0], [0.0, 1.0]]])
    codes = codebook.assign(CodebookState(sums, counts), targets)
    np.testing.assert_array_equal(codes, [[0, 1, 0, 0]])
    assert codes.dtype == jnp.int32


def test_assignment_minimises_the_euclidean_distance_in_each_codebook() -> None:
    state = codebook.init(jax.random.key(0), 2, 50, 8)
    state = state._replace(counts=jax.random.uniform(jax.random.key(1), (2, 50), minval=0.5))
    targets = jax.random.normal(jax.random.key(2), (2, 200, 8))
    codes = np.asarray(state.sums / state.counts[..., None], np.float64)
    difference = np.asarray(targets, np.float64)[:, :, None] - codes[:, None]
    nearest = np.square(difference).sum(axis=-1).argmin(axis=-1)
    np.testing.assert_array_equal(codebook.assign(state, targets), nearest)


def test_used_codes_decay_towards_their_frames_and_unused_ones_stay() -> None:
    state = CodebookState(jnp.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), jnp.ones((1, 3)))
    targets = jnp.array([[[10.0, 20.0], [30.0, 40.0], [7.0, 7.0], [99.0, 99.0]]])
    # two frames of code 0, one of code 2, and one that does not count
    assignments = jnp.array([[[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]]])
    totals = codebook.totals(targets, assignments)
    np.testing.assert_allclose(totals.sums[0], [[40.0, 60.0], [0, 0], [7.0, 7.0]])
    sums, counts = codebook.update(state, totals, 0.9)
    np.testing.assert_allclose(sums[0], [[4.9, 7.8], [3.0, 4.0], [5.2, 6.1]], rtol=1e-6)
    np.testing.assert_allclose(counts[0], [1.1, 1.0, 1.0], rtol=1e-6)


def test_a_decay_of_one_or_more_means_no_update() -> None:
    state = codebook.init(jax.random.key(0), 1, 3, 2)
    for decay in (1.0, 1.5):
        updated = codebook.update(
            state, CodebookState(jnp.ones((1, 3, 2)), jnp.ones((1, 3))), decay
        )
        np.testing.assert_array_equal(updated.sums, state.sums)
        np.testing.assert_array_equal(updated.counts, state.counts)
