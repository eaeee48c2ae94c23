"""Optimizer steps from the reference's weights equal the reference's own."""

from typing import Any

import jax
import numpy as np
import pytest

from spidr_jax.method.step import TrainState
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import torch_names

pytest.importorskip("torch")
pytest.importorskip("spidr")

import reference

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler is enabled")

FULL_EXTRACTOR = {
    "extractor_conv_layer_config": ((24, 10, 5), *[(24, 3, 2)] * 4, *[(24, 2, 2)] * 2),
    "encoder_pos_conv_kernel": 95,
    "encoder_pos_conv_depth": 5,
}
OPTIONS = {
    "extractor_mode": "group_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
    "encoder_qkv_bias": True,
    "encoder_pos_conv_kernel": 12,
}
LINEAR = TeacherConfig(decay=0.9, final_decay=0.99, final_step=3)
NOTHING: dict[str, Any] = {}


def compare(pair: reference.Pair, steps: int, rows: int, samples: int) -> list[TrainState]:
    """Train both; compare every metric of every step and every tensor after the last."""
    before = reference.tensors(pair.model)
    batches = reference.draw_batches(pair.config.model, steps, rows, samples)
    theirs = reference.train_reference(pair, batches)
    states, ours = reference.train_ours(pair, batches)
    reference.check_metrics(ours, theirs)
    last = states[-1]
    after = torch_names.to_torch(last._asdict())
    reference.check_tensors(after, reference.tensors(pair.model), before)
    assert last.skipped == 0
    return states


@pytest.mark.parametrize(
    ("kind", "fields", "arguments"),
    [
        pytest.param("spidr", NOTHING, NOTHING, id="spidr"),
        pytest.param("spidr", OPTIONS, NOTHING, id="spidr-all-options"),
        pytest.param("dinosr", NOTHING, {"teacher": LINEAR, "freeze_step": 5}, id="dinosr"),
        *[
            pytest.param(kind, fields, arguments, marks=pytest.mark.slow, id=name)
            for name, kind, fields, arguments in (
                ("group-norm", "spidr", {"extractor_mode": "group_norm"}, NOTHING),
                ("conv-bias", "spidr", {"extractor_conv_bias": True}, NOTHING),
                ("pre-norm", "spidr", {"encoder_layer_norm_first": True}, NOTHING),
                ("qkv-bias", "spidr", {"encoder_qkv_bias": True}, NOTHING),
                ("even-kernel", "spidr", {"encoder_pos_conv_kernel": 12}, NOTHING),
                ("codebooks-fixed", "spidr", NOTHING, {"codebook_decay": 1.0}),
                ("dinosr-all-options", "dinosr", OPTIONS, {"teacher": LINEAR}),
            )
        ],
    ],
)
def test_five_steps_equal_the_reference(
    kind: str, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    pair = reference.make_pair(kind, reference.SMALL | fields, **arguments)
    compare(pair, 5, 4, 1000)


@pytest.mark.slow
def test_five_steps_through_all_convolutions_equal_the_reference() -> None:
    pair = reference.make_pair("spidr", reference.SMALL | FULL_EXTRACTOR)
    compare(pair, 5, 4, 13_000)


@pytest.mark.slow
def test_five_steps_of_the_published_shape_and_recipe_equal_the_reference() -> None:
    fields = {"encoder_dropout": 0.0, "encoder_attention_dropout": 0.0}
    optimizer, teacher = reference.RECIPE
    pair = reference.make_pair("spidr", fields, optimizer=optimizer, teacher=teacher)
    compare(pair, 5, 2, 16_000)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        pytest.param("spidr", NOTHING, id="spidr"),
        pytest.param("dinosr", {"teacher": LINEAR}, marks=pytest.mark.slow, id="dinosr"),
    ],
)
def test_six_steps_across_the_freeze_equal_the_reference(
    kind: str, arguments: dict[str, Any]
) -> None:
    pair = reference.make_pair(kind, reference.SMALL, freeze_step=3, **arguments)
    states = compare(pair, 6, 4, 1000)
    for name in ("feature_extractor", "feature_projection"):
        at_freeze = jax.tree.leaves(states[2].params[name])
        assert all(map(np.array_equal, at_freeze, jax.tree.leaves(states[5].params[name])))
        assert not any(map(np.array_equal, at_freeze, jax.tree.leaves(states[1].params[name])))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_untrained_norm_is_the_references(pre_norm: bool) -> None:
    fields = reference.SMALL | {"encoder_layer_norm_first": pre_norm}
    pair = reference.make_pair("spidr", fields)
    untrained = {name for name, p in pair.model.named_parameters() if not p.requires_grad}
    untrained = {name for name in untrained if not name.startswith("teacher.")}
    adam = pair.state.opt_state[1]
    moments = {
        ".".join(entry.key for entry in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(adam.mu)
    }
    parameters = {
        ".".join(entry.key for entry in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(pair.state.params)
    }
    norm = "layer_norm" if pre_norm else "layers.2.final_layer_norm"
    assert untrained == {f"student.{norm}.weight", f"student.{norm}.bias"}
    ours = f"student.{norm}".replace("layers.2", "layers_2")
    assert parameters - moments == {f"{ours}.scale", f"{ours}.bias"}


def test_our_default_architecture_is_the_references() -> None:
    theirs = reference.SpidRConfig()
    fields = vars(ModelConfig())
    shared = {name: value for name, value in fields.items() if hasattr(theirs, name)}
    assert fields.keys() - shared.keys() == {"model_type", "frontend", "encoder_layer", "head"}
    conv = "extractor_conv_layer_config"
    assert tuple(map(tuple, theirs.extractor_conv_layer_config)) == shared.pop(conv)
    assert shared == {name: getattr(theirs, name) for name in shared}
