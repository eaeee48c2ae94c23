"""The name table: the reference's names and layouts, both ways."""

import jax
import numpy as np
import pytest

from spidr_jax.method import step as train_step
from spidr_jax.method.step import StepConfig, TrainState
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import torch_names
from spidr_jax.weights.check import named
from spidr_jax.weights.load import PARTS

FIELDS = {
    "extractor_conv_layer_config": ((6, 10, 5), (7, 3, 2)),
    "encoder_embed_dim": 8,
    "encoder_pos_conv_depth": 2,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 16,
    "codebook_size": 5,
    "num_codebooks": 2,
}


def make_state(**changes: object) -> TrainState:
    """A state of random numbers: only names and shapes are the initialiser's."""
    config = StepConfig(model=ModelConfig(**FIELDS | changes))
    shapes = jax.eval_shape(lambda key: train_step.init_state(config, key), jax.random.key(0))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def state() -> TrainState:
    return make_state()


def torch_state(state: TrainState) -> dict[str, np.ndarray]:
    return torch_names.to_torch(state._asdict())


def test_names_and_shapes_are_those_of_the_references_state_dict(state: TrainState) -> None:
    expected: dict[str, tuple[int, ...]] = {
        "feature_extractor.conv_layers.0.conv.weight": (6, 1, 10),
        "feature_extractor.conv_layers.1.conv.weight": (7, 6, 3),
        "feature_projection.layer_norm.weight": (7,),
        "feature_projection.layer_norm.bias": (7,),
        "feature_projection.projection.weight": (8, 7),
        "feature_projection.projection.bias": (8,),
        "mask_embedding": (8,),
    }
    for i, width in enumerate((6, 7)):
        for leaf in ("weight", "bias"):
            expected[f"feature_extractor.conv_layers.{i}.layer_norm.{leaf}"] = (width,)
    for k in range(2):
        expected |= {
            f"heads.{k}.0.weight": (5, 8),
            f"heads.{k}.0.bias": (5,),
            f"codebooks.{k}.codebook": (5, 8),
            f"codebooks.{k}.counts": (5,),
        }
    for side in ("student", "teacher"):
        for i in range(2):
            expected[f"{side}.pos_conv_embed.convs.{i}.weight"] = (8, 4, 47)
            expected[f"{side}.pos_conv_embed.convs.{i}.bias"] = (8,)
        norms = [f"layers.{i}.{n}layer_norm" for i in range(3) for n in ("", "final_")]
        for norm in ("layer_norm", *norms):
            expected |= {f"{side}.{norm}.weight": (8,), f"{side}.{norm}.bias": (8,)}
        for i in range(3):
            layer = f"{side}.layers.{i}"
            expected |= {
                f"{layer}.attention.qkv.weight": (24, 8),
                f"{layer}.attention.proj.weight": (8, 8),
                f"{layer}.attention.proj.bias": (8,),
                f"{layer}.feed_forward.intermediate_dense.weight": (16, 8),
                f"{layer}.feed_forward.intermediate_dense.bias": (16,),
                f"{layer}.feed_forward.output_dense.weight": (8, 16),
                f"{layer}.feed_forward.output_dense.bias": (8,),
            }
    assert {name: value.shape for name, value in torch_state(state).items()} == expected


def test_biases_that_the_config_asks_for_have_their_names() -> None:
    names = torch_state(make_state(extractor_conv_bias=True, encoder_qkv_bias=True)).keys()
    added = names - torch_state(make_state()).keys()
    convs = {f"feature_extractor.conv_layers.{i}.conv.bias" for i in range(2)}
    qkv = {f"{s}.layers.{i}.attention.qkv.bias" for s in ("student", "teacher") for i in range(3)}
    assert added == convs | qkv


def test_values_keep_their_place_under_transposition(state: TrainState) -> None:
    theirs, params = torch_state(state), state.params
    kernel = params["student"]["layers_1"]["attention"]["qkv"]["kernel"]  # [in, out]
    assert theirs["student.layers.1.attention.qkv.weight"][20, 3] == kernel[3, 20]
    kernel = params["feature_extractor"]["conv_layers_1"]["conv"]["kernel"]  # [width, in, out]
    assert theirs["feature_extractor.conv_layers.1.conv.weight"][6, 4, 2] == kernel[2, 4, 6]
    assert theirs["heads.1.0.weight"][4, 7] == params["heads"]["kernel"][1, 7, 4]
    assert theirs["heads.1.0.bias"][4] == params["heads"]["bias"][1, 4]
    assert theirs["codebooks.1.codebook"][4, 7] == state.codebooks.sums[1, 4, 7]


def test_there_and_back_gives_the_same_state(state: TrainState) -> None:
    back = torch_names.from_torch(torch_state(state), PARTS)
    there = {name: getattr(state, name) for name in PARTS}
    assert named(back).keys() == named(there).keys()
    assert all(np.array_equal(array, named(there)[name]) for name, array in named(back).items())
