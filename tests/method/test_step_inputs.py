"""What a step is given: audio, padded or not, masks and dropout, and what each has a part in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import (
    CONFIG,
    FRAMES,
    KEY,
    MODEL,
    NO_DROPOUT,
    SAMPLES,
    Evaluate,
    Step,
    compiled,
    make_batch,
    make_mask,
    same,
)

from spidr_jax.method import masking
from spidr_jax.method.codebook import CodebookConfig, CodebookState
from spidr_jax.method.step import TrainState
from spidr_jax.model import model as networks
from spidr_jax.train import optim


def test_the_mask_embedding_has_a_gradient_and_is_used_at_masked_frames_only(
    state: TrainState, evaluate: Evaluate, step: Step
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


def test_an_unmasked_frame_counts_as_context_only(state: TrainState, evaluate: Evaluate) -> None:
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
    state: TrainState, evaluate: Evaluate
) -> None:
    batch = make_batch()
    first = evaluate(state, batch, KEY)
    assert same(first, evaluate(state._replace(step=jnp.array(5, jnp.int32)), batch, KEY))
    assert first["loss"] != evaluate(state, batch, jax.random.key(8))["loss"]


def test_evaluation_has_no_dropout_and_training_has(
    state: TrainState, step: Step, plain_step: Step, evaluate: Evaluate
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
    state: TrainState, evaluate: Evaluate
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
    state: TrainState, evaluate: Evaluate
) -> None:
    lengths = jnp.array([500, 480, 300, 290])
    frames = MODEL.framing.num_frames(lengths)
    mask = masking.sample_spans(KEY, FRAMES, frames, CONFIG.masking)
    batch = make_batch() | {"lengths": lengths}
    drawn = evaluate(state, batch, KEY)
    given = evaluate(state, batch | {"mask": mask}, KEY)
    assert same(drawn, given)
