"""Promises that every mask keeps, whatever the law, the lengths and the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spidr_jax.method import masking
from spidr_jax.method.masking import MaskingConfig

FRAMES, ROWS, GROUP = 40, 6, 4  # a full group and a rest
LAWS = {
    "static": {},
    "uniform": {"mask_selection": "uniform", "mask_other": 0.0},
    "normal": {"mask_selection": "normal", "mask_other": 6.0},
    "poisson": {"mask_selection": "poisson"},
    "disjoint": {"no_mask_overlap": True},
    "disjoint uniform": {"no_mask_overlap": True, "mask_selection": "uniform"},
    "disjoint normal": {"no_mask_overlap": True, "mask_selection": "normal", "mask_other": 6.0},
    "disjoint poisson": {"no_mask_overlap": True, "mask_selection": "poisson", "mask_min_space": 0},
}
sample = jax.jit(masking.sample_spans, static_argnums=(1, 3))


def draw(seed: int, lengths: list[int], config: MaskingConfig) -> np.ndarray:
    return np.asarray(sample(jax.random.key(seed), FRAMES, jnp.array(lengths), config))


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    lengths=st.lists(
        st.one_of(st.integers(2, 12), st.integers(2, FRAMES)), min_size=ROWS, max_size=ROWS
    ),
)
def test_every_mask_lies_in_its_utterance_with_one_count_per_group_of_at_least_one(
    law: str, seed: int, lengths: list[int]
) -> None:
    mask = draw(seed, lengths, MaskingConfig(**LAWS[law], group_rows=GROUP))
    counts = mask.sum(axis=1)
    assert mask.shape == (ROWS, FRAMES)
    assert not mask[np.arange(FRAMES) >= np.array(lengths)[:, None]].any()
    assert counts.min() >= 1
    assert len(set(counts[:GROUP])) == 1
    assert len(set(counts[GROUP:])) == 1


def test_the_mask_is_a_function_of_the_key() -> None:
    config, lengths = MaskingConfig(), [FRAMES] * ROWS
    first = draw(0, lengths, config)
    np.testing.assert_array_equal(first, draw(0, lengths, config))
    assert (first != draw(1, lengths, config)).any()
    assert len({row.tobytes() for row in first}) == ROWS


def test_groups_are_cut_to_their_own_smallest_count_at_random() -> None:
    # the short utterance cuts only the group it is in
    config = MaskingConfig(group_rows=GROUP)
    lengths = [FRAMES, FRAMES, FRAMES, 8, FRAMES, FRAMES]
    kept = np.zeros(FRAMES)
    for seed in range(200):
        mask = draw(seed, lengths, config)
        assert mask[:GROUP].sum(axis=1).max() <= 8
        assert mask[GROUP:].sum(axis=1).min() >= 10
        kept += mask[0]
    # about 7 of 40 frames each time: near both ends too
    assert kept[:20].sum() / kept[20:].sum() == pytest.approx(1, abs=0.25)


def test_a_span_count_below_two_becomes_two() -> None:
    config = MaskingConfig(mask_prob=0.01, group_rows=1)
    for seed in range(20):
        counts = draw(seed, [FRAMES] * ROWS, config).sum(axis=1)
        assert (counts > 10).all()  # two distinct starts of 10 frames
        assert (counts <= 20).all()


def test_static_spans_are_ten_frames_long_unless_cut_or_joined() -> None:
    config = MaskingConfig(mask_prob=0.2, group_rows=1)
    for seed in range(20):
        for row in draw(seed, [FRAMES] * ROWS, config):
            edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
            assert (np.diff(edges)[::2] >= 10).all()


def test_disjoint_spans_keep_their_gap() -> None:
    config = MaskingConfig(
        no_mask_overlap=True, mask_min_space=3, mask_length=4, mask_prob=0.9, group_rows=1
    )
    several = 0
    for seed in range(20):
        for row in draw(seed, [FRAMES] * ROWS, config):
            edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
            lengths = np.diff(edges)
            assert (lengths[::2] == 4).all()
            assert (lengths[1::2] >= 3).all()
            several += len(edges) > 4
    assert several > 60
