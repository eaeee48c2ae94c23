"""Codebooks: nearest codes and decayed sums, against values worked out by hand or in numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.method import codebook
from spidr_jax.method.codebook import CodebookConfig, CodebookState, CodeStatistics

CONFIG, KEY = CodebookConfig(), jax.random.key(0)


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
    mask = jnp.array([True, True, True, False])
    found = codebook.assign(CONFIG, CodebookState(sums, counts), targets, mask)
    np.testing.assert_array_equal(found, [[[1, 0], [0, 1], [1, 0], [0, 0]]])


def test_assignment_minimises_the_euclidean_distance_in_each_codebook() -> None:
    state = codebook.init(jax.random.key(0), 2, 50, 8)
    state = state._replace(counts=jax.random.uniform(jax.random.key(1), (2, 50), minval=0.5))
    targets = jax.random.normal(jax.random.key(2), (2, 200, 8))
    codes = np.asarray(state.sums / state.counts[..., None], np.float64)
    difference = np.asarray(targets, np.float64)[:, :, None] - codes[:, None]
    nearest = np.square(difference).sum(axis=-1).argmin(axis=-1)
    found = codebook.assign(CONFIG, state, targets, jnp.ones(200, bool))
    np.testing.assert_array_equal(found, np.eye(50)[nearest])


def test_used_codes_decay_towards_their_frames_and_unused_ones_stay() -> None:
    state = CodebookState(jnp.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), jnp.ones((1, 3)))
    targets = jnp.array([[[10.0, 20.0], [30.0, 40.0], [7.0, 7.0], [99.0, 99.0]]])
    # two frames of code 0, one of code 2, and one that does not count
    assignments = jnp.array([[[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]]])
    batch = codebook.statistics(targets, assignments, jnp.array([3, 1, 0, 7]))
    np.testing.assert_allclose(batch.sums[0], [[40.0, 60.0], [0, 0], [7.0, 7.0]])
    np.testing.assert_array_equal(batch.counts[0], [2, 0, 1])
    np.testing.assert_array_equal(batch.candidates[0], [[7, 7], [30, 40], [0, 0]])
    sums, counts = codebook.update(CONFIG, state, batch, KEY)
    np.testing.assert_allclose(sums[0], [[4.9, 7.8], [3.0, 4.0], [5.2, 6.1]], rtol=1e-6)
    np.testing.assert_allclose(counts[0], [1.1, 1.0, 1.0], rtol=1e-6)


def test_a_decay_of_one_means_no_update() -> None:
    state = codebook.init(KEY, 1, 3, 2)
    batch = CodeStatistics(jnp.ones((1, 3, 2)), jnp.ones((1, 3)), jnp.ones((1, 3, 2)))
    updated = codebook.update(CodebookConfig(decay=1.0), state, batch, KEY)
    np.testing.assert_array_equal(updated.sums, state.sums)
    np.testing.assert_array_equal(updated.counts, state.counts)


def test_lots_number_the_masked_frames_first_in_random_order() -> None:
    mask = jax.random.bernoulli(KEY, 0.5, (3, 40))
    lots = np.array(codebook.draw_lots(jax.random.key(1), mask))
    masked = np.asarray(mask)
    assert sorted(lots[masked]) == list(range(masked.sum()))
    assert sorted(lots.ravel()) == list(range(mask.size))
    assert list(lots[masked]) != sorted(lots[masked])
    assert (lots != codebook.draw_lots(jax.random.key(2), mask)).any()


def test_the_statistics_of_parts_add_up_to_those_of_the_batch() -> None:
    targets = jax.random.normal(KEY, (2, 12, 3))
    assignments = jax.nn.softmax(jax.random.normal(jax.random.key(1), (2, 12, 5)))
    lots = jax.random.permutation(jax.random.key(2), 12)
    whole = codebook.statistics(targets, assignments, lots)
    np.testing.assert_array_equal(whole.candidates, targets[:, jnp.argsort(lots)[:5]])
    parts = [slice(0, 12, 2), slice(1, 12, 2)]
    split = [codebook.statistics(targets[:, p], assignments[:, p], lots[p]) for p in parts]
    for name, value in whole._asdict().items():
        total = sum(getattr(part, name) for part in split)
        np.testing.assert_allclose(total, value, rtol=1e-6, atol=1e-6, err_msg=name)
