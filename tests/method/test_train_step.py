"""The training step: pure, guarded against non-finite numbers, frozen on time, padded or not."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spidr_jax.method import masking
from spidr_jax.method import step as train_step
from spidr_jax.method.codebook import CodebookConfig, CodebookState
from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.model import model as networks
from spidr_jax.model.config import ModelConfig
from spidr_jax.train import optim
from spidr_jax.train.optim import OptimizerConfig

MODEL = ModelConfig(
    extractor_conv_layer_config=((16, 10, 5), (16, 3, 2)),
    encoder_embed_dim=16,
    encoder_pos_conv_depth=1,
    encoder_pos_conv_kernel=5,
    encoder_pos_conv_groups=2,
    encoder_num_layers=2,
    encoder_num_heads=2,
    encoder_ff_interm_features=32,
    codebook_size=8,
    num_codebooks=2,
)
CONFIG = StepConfig(
    model=MODEL,
    masking=MaskingConfig(group_rows=2),
    optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0),
    dtype=jnp.float32,
)
NO_DROPOUT = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(MODEL, encoder_dropout=0.0, encoder_attention_dropout=0.0),
)
SAMPLES = 500
FRAMES = MODEL.framing.num_frames(SAMPLES)
KEY = jax.random.key(7)
Batch = dict[str, Any]
Metrics = dict[str, np.ndarray]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def make_batch(seed: int = 0, rows: int = 4) -> dict[str, jax.Array]:
    waveforms = np.random.default_rng(seed).standard_normal((rows, SAMPLES))
    return {"waveforms": jnp.asarray(waveforms, jnp.float32)}


def make_mask(seed: int = 0, rows: int = 4, frames: int = FRAMES) -> np.ndarray:
    draw = np.random.default_rng(seed)
    order = np.stack([draw.permutation(frames) for _ in range(rows)])
    return order < frames // 2


@pytest.fixture(scope="module")
def state() -> TrainState:
    return jax.jit(train_step.init_state, static_argnums=0)(CONFIG, jax.random.key(0))


def compiled(config: StepConfig, frozen: bool = False) -> Step:
    """The jitted step, with metrics in numpy."""
    step = jax.jit(train_step.make_train_step(config, frozen))

    def run(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch, key)
        return after, jax.device_get(metrics)

    return run


@pytest.fixture(scope="module")
def step() -> Step:
    return compiled(CONFIG)


@pytest.fixture(scope="module")
def plain_step() -> Step:
    """Without dropout."""
    return compiled(NO_DROPOUT)


@pytest.fixture(scope="module")
def evaluate() -> Callable[[TrainState, Batch, jax.Array], Metrics]:
    evaluate = jax.jit(train_step.make_eval_step(CONFIG))
    return lambda state, batch, key: jax.device_get(evaluate(state, batch, key))


def same(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y, equal_nan=True)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


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
    assert metrics["teacher_decay"] == pytest.approx(0.999, rel=1e-6)


def test_a_fresh_models_loss_is_near_the_logarithm_of_the_codebook_size(
    state: TrainState, step: Step
) -> None:
    assert step(state, make_batch(), KEY)[1]["loss"] == pytest.approx(np.log(8), abs=0.7)


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


def test_the_next_clean_step_after_a_skipped_one_trains(state: TrainState, step: Step) -> None:
    batch = make_batch()
    bad = {"waveforms": batch["waveforms"].at[0, 0].set(jnp.nan)}
    state, _ = step(state, bad, KEY)
    after, metrics = step(state, batch, KEY)
    assert np.isfinite(metrics["loss"])
    assert (after.step, after.skipped) == (2, 1)
    assert not same(after.params, state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


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


def test_the_mask_embedding_has_a_gradient_and_is_used_at_masked_frames_only(
    state: TrainState, evaluate: Callable[..., Metrics], step: Step
) -> None:
    after, _ = step(state, make_batch(), KEY)
    assert (after.opt_state[1].mu["mask_embedding"] != 0).all()
    # where every frame is masked, the student knows nothing of the audio, the teacher all
    everything = jnp.ones((4, FRAMES), bool)
    moved = state._replace(params=state.params | {"mask_embedding": jnp.zeros(16)})
    batch = make_batch() | {"mask": everything}
    a, b = evaluate(state, batch, KEY), evaluate(moved, batch, KEY)
    assert a["pred_ppl"] != b["pred_ppl"]
    assert a["target_ppl"] == b["target_ppl"]


def test_an_unmasked_frame_counts_as_context_only(
    state: TrainState, evaluate: Callable[..., Metrics]
) -> None:
    """Masked frames count the same however many unmasked ones there are: sums add up."""
    mask = jnp.asarray(make_mask())
    results = evaluate(state, make_batch() | {"mask": mask}, KEY)
    assert results["masked_frames"] == mask.sum()
    # one row's mask emptied: its frames leave the sums, and the other rows' stay as they were
    parts = []
    for row in range(4):
        alone = mask & (jnp.arange(4) == row)[:, None]
        parts.append(evaluate(state, make_batch() | {"mask": alone}, KEY))
    total = sum(part["loss"] * part["masked_frames"] for part in parts)
    assert results["loss"] == pytest.approx(float(total / mask.sum()), rel=1e-5)


def test_evaluation_gives_the_same_metrics_for_the_same_key_at_any_step(
    state: TrainState, evaluate: Callable[..., Metrics]
) -> None:
    batch = make_batch()
    first = evaluate(state, batch, KEY)
    assert same(first, evaluate(state._replace(step=jnp.array(5, jnp.int32)), batch, KEY))
    assert first["loss"] != evaluate(state, batch, jax.random.key(8))["loss"]


def test_evaluation_has_no_dropout_and_training_has(
    state: TrainState, step: Step, plain_step: Step, evaluate: Callable[..., Metrics]
) -> None:
    batch = make_batch() | {"mask": jnp.asarray(make_mask())}
    without = plain_step(state, batch, KEY)[1]
    evaluated = evaluate(state, batch, KEY)
    assert evaluated["loss"] == pytest.approx(without["loss"], rel=1e-6)
    trained = step(state, batch, KEY)[1]
    assert abs(trained["grad_norm"] / without["grad_norm"] - 1) > 1e-4
    # the teacher has none in training either
    assert trained["target_ppl"] == pytest.approx(without["target_ppl"], rel=1e-6)


def test_projection_dropout_does_not_reach_the_teacher(state: TrainState, plain_step: Step) -> None:
    model = dataclasses.replace(NO_DROPOUT.model, encoder_projection_dropout=0.5)
    batch = make_batch() | {"mask": jnp.asarray(make_mask())}
    plain, _ = plain_step(state, batch, KEY)
    dropped, _ = compiled(dataclasses.replace(NO_DROPOUT, model=model))(state, batch, KEY)
    np.testing.assert_allclose(dropped.codebooks.sums, plain.codebooks.sums, rtol=1e-5, atol=1e-6)
    gradients = [
        each.opt_state[1].mu["feature_projection"]["projection"]["kernel"]
        for each in (dropped, plain)
    ]
    assert jnp.linalg.norm(gradients[0] - gradients[1]) > 0.1 * jnp.linalg.norm(gradients[1])


def test_waveforms_with_mean_and_inverse_deviation_are_standardised_in_the_step(
    state: TrainState, evaluate: Callable[..., Metrics]
) -> None:
    raw = np.random.default_rng(3).integers(-9_000, 9_000, (4, SAMPLES)).astype(np.int16)
    mean = raw.mean(axis=1, dtype=np.float32)
    inv_std = 1 / raw.std(axis=1, dtype=np.float32)
    done = (raw - mean[:, None]) * inv_std[:, None]
    given = {"waveforms": jnp.asarray(raw), "mean": jnp.asarray(mean)}
    given["inv_std"] = jnp.asarray(inv_std)
    expected = evaluate(state, {"waveforms": jnp.asarray(done)}, KEY)
    found = evaluate(state, given, KEY)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["masked_frames"] == expected["masked_frames"]


LENGTHS = (500, 321)


@pytest.mark.parametrize("mode", [pytest.param("layer_norm", marks=pytest.mark.slow), "group_norm"])
def test_a_padded_batch_counts_as_its_utterances_alone(state: TrainState, mode: str) -> None:
    """Loss, targets (through the codebooks' sums) and counts of a batch are those of its rows."""
    model = dataclasses.replace(NO_DROPOUT.model, extractor_mode=mode)
    config = dataclasses.replace(NO_DROPOUT, model=model, codebook=CodebookConfig(decay=0.0))
    params = state.params
    if mode == "group_norm":  # no norm but the first convolution's
        first, second = (params["feature_extractor"][f"conv_layers_{i}"] for i in range(2))
        extractor = {"conv_layers_0": first, "conv_layers_1": {"conv": second["conv"]}}
        params = params | {"feature_extractor": extractor}
    trained, _ = optim.split(params, networks.trained(model, frozen=False))
    # with decay 0 a used code holds its frames' sum and number, and half marks an unused one
    codebooks = CodebookState(state.codebooks.sums / 2, jnp.full((2, 8), 0.5))
    moments = optim.make_optimizer(config.optimizer).init(trained)
    start = state._replace(params=params, opt_state=moments, codebooks=codebooks)
    step = compiled(config)

    waveforms = np.array(make_batch(rows=2)["waveforms"])
    frames = [model.framing.num_frames(n) for n in LENGTHS]
    mask = np.zeros((2, FRAMES), bool)
    for row, number in enumerate(frames):
        mask[row, :number] = make_mask(row, 1, number)
    sums, counts, losses = np.zeros((2, 8, 16)), np.zeros((2, 8)), np.zeros(2)
    for row, (samples, number) in enumerate(zip(LENGTHS, frames, strict=True)):
        alone = {"waveforms": waveforms[row : row + 1, :samples], "mask": mask[row, :number][None]}
        after, metrics = step(start, alone, KEY)
        used = np.asarray(after.codebooks.counts) != 0.5
        sums += np.where(used[..., None], after.codebooks.sums, 0)
        counts += np.where(used, after.codebooks.counts, 0)
        losses += np.asarray(metrics["loss_per_codebook"]) * mask[row].sum()

    together = {"mask": jnp.asarray(mask), "lengths": jnp.array(LENGTHS)}
    results = []
    for filling in (0.0, 50.0):  # what lies in the padding is of no consequence, whatever it is
        inside = np.arange(SAMPLES) < np.array(LENGTHS)[:, None]
        padded = jnp.asarray(np.where(inside, waveforms, filling), jnp.float32)
        after, metrics = step(start, together | {"waveforms": padded}, KEY)
        used = counts > 0
        np.testing.assert_array_equal(after.codebooks.counts, np.where(used, counts, 0.5))
        np.testing.assert_allclose(after.codebooks.sums[used], sums[used], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(metrics["loss_per_codebook"], losses / mask.sum(), rtol=1e-5)
        results.append((after.params, metrics["grad_norm"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_drawn_masks_are_sample_spans_of_the_valid_frames_with_the_steps_key(
    state: TrainState, evaluate: Callable[..., Metrics]
) -> None:
    lengths = jnp.array([500, 480, 300, 290])
    frames = MODEL.framing.num_frames(lengths)
    mask = masking.sample_spans(KEY, FRAMES, frames, CONFIG.masking)
    batch = make_batch() | {"lengths": lengths}
    drawn = evaluate(state, batch, KEY)
    given = evaluate(state, batch | {"mask": mask}, KEY)
    assert same(drawn, given)


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
