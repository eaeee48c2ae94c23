"""Cross-entropy and perplexities, against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import loss
from spidr_jax.method.loss import LossConfig


def test_cross_entropy_sums_over_the_frames_that_count_per_codebook() -> None:
    log_probs = jnp.log(
        jnp.array([[[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]], [[0.2, 0.8], [0.4, 0.6], [0.1, 0.9]]])
    )
    assignments = jnp.array([[[1.0, 0], [1.0, 0], [0, 0]], [[0, 1.0], [1.0, 0], [0, 0]]])
    expected = [-(np.log(0.5) + np.log(0.25)), -(np.log(0.8) + np.log(0.4))]
    found = loss.LOSSES["cross_entropy"](LossConfig(), log_probs, assignments)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([1.0, 0.0, 0.0, 0.0], 1.0),
        ([0.5, 0.5, 0.0, 0.0], 2.0),
        ([0.25, 0.25, 0.25, 0.25], 4.0),
        ([0.5, 0.25, 0.25, 0.0], 2**1.5),
    ],
)
def test_perplexity_is_two_to_the_entropy_in_bits(
    probabilities: list[float], expected: float
) -> None:
    assert loss.perplexity(jnp.array(probabilities)) == pytest.approx(expected, rel=1e-6)


def test_perplexity_adds_the_references_epsilon_inside_the_logarithm() -> None:
    # 1e6 codes of 1e-6 each: log2(1e-6 + 1e-8) instead of log2(1e-6) is 1 % less perplexity
    probabilities = jnp.full(1_000_000, 1e-6)
    assert loss.perplexity(probabilities) == pytest.approx(1e6 / 1.01, rel=1e-3)
