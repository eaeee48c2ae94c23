"""Teacher schedules and updates, against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import teacher
from spidr_jax.method.teacher import TeacherConfig

FREEZE = 200_000


def rates(config: TeacherConfig, *steps: int) -> np.ndarray:
    return np.array([teacher.ema_rate(config, jnp.array(step), FREEZE) for step in steps])


def test_exponential_rate_falls_with_the_timescale_and_keeps_its_digits() -> None:
    found = rates(TeacherConfig(), 1, 20_000, 150_000)
    expected = [0.001 * np.exp(-1 / 20_000), 0.001 / np.e, 0.001 * np.exp(-7.5)]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_exponential_rate_is_zero_from_the_step_at_which_it_reaches_the_threshold() -> None:
    before, after = rates(TeacherConfig(), 184_206, 184_207)
    assert before == pytest.approx(1e-7, rel=1e-4)
    assert after == 0


def test_linear_rate_falls_to_the_final_decay_and_ends_at_the_freeze() -> None:
    found = rates(TeacherConfig(schedule="linear"), 0, 15_000, 30_000, 199_999, 200_000)
    np.testing.assert_allclose(found, [1e-3, 5.5e-4, 1e-4, 1e-4, 0], rtol=1e-6)


def trees() -> tuple[dict, dict]:
    old = {
        "pos_conv_embed": {"convs_0": {"kernel": jnp.array([1.0, 2.0])}},
        "layers_0": {"kernel": jnp.array([1.0, 2.0])},
        "layers_1": {"kernel": jnp.array([4.0])},
    }
    return old, jax.tree.map(lambda x: x + 10, old)


def test_update_interpolates_and_copies_the_excluded_layers() -> None:
    old, new = trees()
    moved = teacher.update(old, new, jnp.array(0.25), ("pos_conv_embed",))
    np.testing.assert_allclose(moved["layers_0"]["kernel"], [3.5, 4.5])
    np.testing.assert_allclose(moved["layers_1"]["kernel"], [6.5])
    np.testing.assert_array_equal(moved["pos_conv_embed"]["convs_0"]["kernel"], [11, 12])
    moved = teacher.update(old, new, jnp.array(0.25), ("layers_0.ker", "layers_1"))
    np.testing.assert_array_equal(moved["layers_0"]["kernel"], [11, 12])
    np.testing.assert_array_equal(moved["layers_1"]["kernel"], [14])
    np.testing.assert_allclose(moved["pos_conv_embed"]["convs_0"]["kernel"], [3.5, 4.5])


def test_nothing_moves_at_rate_zero_excluded_layers_neither() -> None:
    old, new = trees()
    moved = teacher.update(old, new, jnp.array(0.0), ("pos_conv_embed",))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), old, moved))


def test_a_prefix_without_parameters_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"exclude_layers.*'pos_convs'"):
        teacher.check_excluded(trees()[0], ("pos_conv_embed", "pos_convs"))


def test_a_fresh_teacher_redraws_attention_and_feed_forward_only() -> None:
    student = {
        "layers_0": {
            "attention": {"qkv": {"kernel": jnp.array(1.0)}},
            "feed_forward": {"output_dense": {"kernel": jnp.array(1.0)}},
            "layer_norm": {"scale": jnp.array(1.0)},
        },
        "pos_conv_embed": {"convs_0": {"kernel": jnp.array(1.0)}},
    }
    made = teacher.init(student, jax.tree.map(lambda x: x + 1, student))
    assert made["layers_0"]["attention"]["qkv"]["kernel"] == 2
    assert made["layers_0"]["feed_forward"]["output_dense"]["kernel"] == 2
    assert made["layers_0"]["layer_norm"]["scale"] == 1
    assert made["pos_conv_embed"]["convs_0"]["kernel"] == 1
