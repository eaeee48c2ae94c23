"""The training step: pure, guarded against non-finite numbers, frozen on time."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import CONFIG, KEY, Step, compiled, make_batch, make_mask, same

from spidr_jax.method import step as train_step
from spidr_jax.method.step import TrainState
from spidr_jax.model import model as networks


def test_a_step_is_pure(state: TrainState, step: Step) -> None:
    before, batch = jax.tree.map(np.array, state), make_batch()
    first, second = step(state, batch, KEY), step(state, batch, KEY)
    assert same(first, second)
    assert same(state, before)
    assert jax.tree.structure(first[0]) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), first[0]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_a_step_moves_all_that_trains_and_counts_itself(state: TrainState, step: Step) -> None:
    after, metrics = step(state, make_batch(), KEY)
    assert after.step == 1
    assert after.skipped == metrics["skipped"] == 0
    assert not np.array_equal(after.codebooks.sums, state.codebooks.sums)
    assert not np.array_equal(after.codebooks.counts, state.codebooks.counts)
    still = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(state.params),
            jax.tree.leaves(after.params),
            strict=True,
        )
        if np.array_equal(old, new)
    ]
    assert still == [f"student.layers_1.final_layer_norm.{leaf}" for leaf in ("bias", "scale")]
    teachers = jax.tree.map(np.array_equal, state.teacher, after.teacher)
    assert not teachers["layers_0"]["attention"]["qkv"]["kernel"]
    # one value, perhaps computed twice
    shared = after.teacher["pos_conv_embed"], after.params["student"]["pos_conv_embed"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), *shared)


GOLDEN = (
    {
        **{"loss": 2.086598, "target_ppl": 5.750567, "pred_ppl": 7.968225, "active_codes": 7.5},
        **{"masked_frames": 108.0, "grad_norm": 0.264681, "teacher_decay": 0.999},
    },
    {
        **{"loss": 2.060042, "target_ppl": 5.16317, "pred_ppl": 7.968269, "active_codes": 7.0},
        **{"masked_frames": 94.0, "grad_norm": 0.297326, "teacher_decay": 0.999},
    },
)


def test_two_steps_have_the_metrics_that_they_had(state: TrainState, step: Step) -> None:
    """With dropout and drawn masks."""
    found = []
    for expected in GOLDEN:
        state, metrics = step(state, make_batch(), KEY)
        found.append({name: round(float(metrics[name]), 6) for name in expected})
    for values, expected in zip(found, GOLDEN, strict=True):
        assert values == pytest.approx(expected, rel=1e-4), (
            f"training computes something else; if that is meant, GOLDEN becomes {found}"
        )


def test_masks_and_dropout_follow_key_and_step(state: TrainState, step: Step) -> None:
    batch = make_batch()
    losses = {
        float(step(changed, batch, key)[1]["loss"])
        for changed in (state, state._replace(step=jnp.array(1, jnp.int32)))
        for key in (KEY, jax.random.key(8))
    }
    assert len(losses) == 4


def test_metrics_are_means_of_their_values_per_codebook(state: TrainState, step: Step) -> None:
    _, metrics = step(state, make_batch(), KEY)
    for name in ("loss", "target_ppl", "pred_ppl", "active_codes"):
        values = metrics[f"{name}_per_codebook"]
        assert values.shape == (2,)
        assert metrics[name] == pytest.approx(values.mean(), rel=1e-6)
    assert metrics["learning_rate"] == pytest.approx(1e-2)


def test_target_statistics_are_those_of_the_masked_frames(
    state: TrainState, plain_step: Step
) -> None:
    """The numbers of frames that each code got are read off the codebooks' counts."""
    mask = make_mask()
    batch = make_batch() | {"mask": jnp.asarray(mask)}
    after, metrics = plain_step(state, batch, KEY)
    counts = np.asarray(after.codebooks.counts, np.float64)
    counts = np.where(counts == 1, 0, ((counts - 0.9) / 0.1).round())  # 1 frame moves nothing
    assert metrics["masked_frames"] == mask.sum()
    np.testing.assert_array_equal(counts.sum(axis=1), mask.sum())
    np.testing.assert_array_equal(metrics["active_codes_per_codebook"], (counts > 0).sum(axis=1))
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(share * np.log2(share + 1e-8)).sum(axis=1)
    np.testing.assert_allclose(metrics["target_ppl_per_codebook"], 2**entropy, rtol=1e-5)


def poisoned(state: TrainState) -> TrainState:
    """Finite weights and loss, but a gradient whose norm overflows float32."""
    first = state.params["feature_extractor"]["conv_layers_0"]
    second = state.params["feature_extractor"]["conv_layers_1"]
    norm = jax.tree.map(lambda x: x * 1e-25, first["layer_norm"])
    conv = jax.tree.map(lambda x: x * 1e25, second["conv"])
    extractor = {
        "conv_layers_0": first | {"layer_norm": norm},
        "conv_layers_1": second | {"conv": conv},
    }
    return state._replace(params=state.params | {"feature_extractor": extractor})


@pytest.mark.parametrize("fault", ["NaN in the audio", "infinite audio", "infinite gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(
    state: TrainState, step: Step, fault: str
) -> None:
    batch = make_batch()
    state, _ = step(state, batch, KEY)  # moments that are not zero
    bad = batch
    if fault == "infinite gradient":
        state = poisoned(state)
    else:
        value = jnp.nan if fault == "NaN in the audio" else jnp.inf
        bad = {"waveforms": batch["waveforms"].at[2, 100].set(value)}
    after, metrics = step(state, bad, KEY)
    assert np.isfinite(metrics["loss"]) == (fault == "infinite gradient")
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    assert (after.step, after.skipped) == (2, 1)
    assert same(after._replace(step=state.step, skipped=state.skipped), state)
    if fault != "infinite gradient":
        trained, _ = step(after, batch, KEY)
        assert (trained.step, trained.skipped) == (3, 1)
        assert not same(trained.params, state.params)


def test_repeated_steps_on_one_batch_lower_the_loss(state: TrainState, plain_step: Step) -> None:
    batch = make_batch() | {"mask": jnp.asarray(make_mask())}
    losses = []
    for _ in range(12):
        state, metrics = plain_step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3


def test_the_frozen_program_leaves_extractor_and_projection_and_has_no_moments_for_them(
    state: TrainState, step: Step
) -> None:
    batch = make_batch()
    state, _ = step(state, batch, KEY)
    state = train_step.freeze(CONFIG, state)
    after, metrics = compiled(CONFIG, frozen=True)(state, batch, KEY)
    for name in networks.FROZEN_MODULES:
        assert same(after.params[name], state.params[name])
        assert not jax.tree.leaves(after.opt_state[1].mu[name])
    assert not same(after.params["student"], state.params["student"])
    assert not same(after.params["mask_embedding"], state.params["mask_embedding"])
    assert not same(after.teacher, state.teacher)
    assert np.isfinite(metrics["grad_norm"])


def test_bf16_keeps_float32_state_and_a_loss_near_float32s(state: TrainState, step: Step) -> None:
    half = compiled(dataclasses.replace(CONFIG, dtype=jnp.bfloat16))
    batch = make_batch()
    after, metrics = half(state, batch, KEY)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(after)}
    assert kinds == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    full = step(state, batch, KEY)[1]
    assert metrics["loss"] == pytest.approx(full["loss"], rel=0.02)
    assert metrics["loss"] != full["loss"]
    assert after.skipped == 0


def test_a_state_that_starts_frozen_has_no_moments_for_extractor_and_projection() -> None:
    config = dataclasses.replace(CONFIG, freeze_step=0)
    made = jax.eval_shape(lambda key: train_step.init_state(config, key), jax.random.key(0))
    for name in networks.FROZEN_MODULES:
        assert not jax.tree.leaves(made.opt_state[1].mu[name])


@pytest.mark.parametrize("saving", [{"accumulate": 2}, {"remat": True}], ids=str)
def test_what_saves_memory_changes_no_result(saving: dict[str, Any]) -> None:
    """With every kind of dropout, padding and both mask groups of the batch."""
    model = dataclasses.replace(
        CONFIG.model, encoder_projection_dropout=0.1, encoder_layer_drop=0.3
    )
    config = dataclasses.replace(CONFIG, model=model)
    batch = make_batch()
    rows, samples = batch["waveforms"].shape
    batch["lengths"] = jnp.linspace(samples // 2, samples, rows).astype(jnp.int32)
    state = jax.jit(train_step.init_state, static_argnums=0)(config, jax.random.key(0))
    (whole, expected), (saved, found) = (
        compiled(each)(state, batch, KEY)
        for each in (config, dataclasses.replace(config, **saving))
    )
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, err_msg=name)
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    for (path, a), b in zip(leaves, jax.tree.leaves(saved), strict=True):
        error = np.linalg.norm(np.asarray(b, np.float64) - a)
        assert error <= 1e-5 * np.linalg.norm(np.asarray(a, np.float64)), path


@pytest.mark.parametrize("parts", [1, 2])
def test_candidates_that_no_update_reads_are_not_drawn(parts: int) -> None:
    """Lots are sorted, and with the mask given nothing else is."""
    config = dataclasses.replace(CONFIG, accumulate=parts)
    state = jax.eval_shape(lambda key: train_step.init_state(config, key), KEY)
    batch = make_batch() | {"mask": jnp.asarray(make_mask())}
    step = jax.jit(train_step.make_train_step(config, frozen=False))
    assert " sort(" not in step.lower(state, batch, KEY).compile().as_text()
