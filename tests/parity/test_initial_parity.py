"""A fresh model's tensors are drawn from the distributions of a fresh reference model."""

from typing import Any

import jax
import numpy as np
import pytest

from spidr_jax.method import step as train_step
from spidr_jax.method.step import StepConfig
from spidr_jax.weights import torch_names

pytest.importorskip("torch")
pytest.importorskip("spidr")

import reference

FIELDS = reference.SMALL | {
    "extractor_conv_layer_config": ((64, 10, 5), (96, 3, 2), (128, 2, 2)),
    "encoder_embed_dim": 128,
    "encoder_ff_interm_features": 256,
    "codebook_size": 64,
    "extractor_conv_bias": True,
    "encoder_qkv_bias": True,
}


@pytest.fixture(scope="module")
def fresh() -> tuple[dict[str, Any], dict[str, Any]]:
    pair = reference.make_pair("spidr", FIELDS)
    init = jax.jit(train_step.init_state, static_argnums=0)
    state = init(StepConfig(model=pair.config.model), jax.random.key(0))
    ours = torch_names.to_torch(state._asdict())
    return ours, reference.tensors(pair.model)


def test_every_tensor_has_the_references_name_shape_and_type(fresh: Any) -> None:
    ours, theirs = fresh
    assert {n: (v.shape, v.dtype) for n, v in ours.items()} == {
        n: (v.shape, v.dtype) for n, v in theirs.items()
    }


def test_every_tensor_has_the_references_moments_and_bounds(fresh: Any) -> None:
    """Mean, variance and kurtosis within five standard errors; constants exactly."""
    ours, theirs = fresh
    wrong = {}
    for name, their in theirs.items():
        a, b = ours[name].astype(np.float64).ravel(), their.astype(np.float64).ravel()
        if b.std() == 0:
            if not np.array_equal(a, b):
                wrong[name] = "constant"
            continue
        mean, std, number = b.mean(), b.std(), b.size
        kurtosis = (((b - mean) / std) ** 4).mean()
        # standard errors of a difference of two samples
        mean_error = std * np.sqrt(2 / number)
        std_error = std * np.sqrt(2 * max(kurtosis - 1, 0.8) / (4 * number))
        if abs(a.mean() - mean) > 5 * mean_error:
            wrong[name] = f"mean {a.mean()} for {mean}"
        if abs(a.std() - std) > 5 * std_error:
            wrong[name] = f"standard deviation {a.std()} for {std}"
        if number >= 1000:
            # 1.8 for a uniform distribution, 3 for a normal one
            ours_kurtosis = (((a - a.mean()) / a.std()) ** 4).mean()
            if abs(ours_kurtosis - kurtosis) > 5 * np.sqrt(2 * 24 / number):
                wrong[name] = f"kurtosis {ours_kurtosis} for {kurtosis}"
        if kurtosis < 2.2 and np.abs(a).max() > 1.1 * np.abs(b).max() and number >= 1000:
            wrong[name] = f"bound {np.abs(a).max()} for {np.abs(b).max()}"
    assert not wrong, wrong


def test_teacher_copies_and_redraws_what_the_references_does(fresh: Any) -> None:
    copied = []
    for state in fresh:
        students = {n: v for n, v in state.items() if n.startswith("student.")}
        copied.append(
            {
                name
                for name, value in students.items()
                if np.array_equal(state[name.replace("student.", "teacher.")], value)
            }
        )
    assert copied[0] == copied[1]
    assert any("pos_conv_embed" in name for name in copied[0])
    assert not any(name.endswith(("qkv.weight", "output_dense.weight")) for name in copied[0])


def test_codebook_coordinates_are_standardised_as_the_references(fresh: Any) -> None:
    for state in fresh:
        codes = state["codebooks.1.codebook"]
        np.testing.assert_allclose(codes.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(codes.std(axis=0), 1, rtol=1e-4)
