"""Values of config's sections that are refused by the field's name."""

from typing import Any

import pytest

from spidr_jax.method.codebook import CodebookConfig
from spidr_jax.method.loss import LossConfig
from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.config import ModelConfig

NAN = float("nan")
BAD: dict[type, dict[str, tuple[Any, ...]]] = {
    CodebookConfig: {"decay": (-0.1, NAN), "assignment": ("furthest",), "update_rule": ("never",)},
    LossConfig: {"name": ("hinge",)},
    MaskingConfig: {
        "mask_prob": (0.0, 1.5, NAN),
        "mask_length": (0,),
        "mask_selection": ("gaussian",),
        "mask_other": (-1.0, 21.0),
        "mask_min_space": (-1,),
        "group_rows": (0,),
    },
    TeacherConfig: {
        "schedule": ("cosine",),
        "decay": (1.1, NAN),
        "timescale": (0,),
        "threshold": (-1e-7,),
        "final_decay": (-0.1,),
        "final_step": (0,),
    },
    ModelConfig: {
        "model_type": ("hubert",),
        "extractor_mode": ("batch_norm",),
        "extractor_conv_layer_config": ((), ((512, 10),), ((512, 0, 5),)),
        "encoder_embed_dim": (0,),
        "encoder_num_heads": (7,),
        "encoder_pos_conv_groups": (5,),
        "encoder_pos_conv_depth": (0,),
        "encoder_num_layers": (2.5,),
        "encoder_dropout": (1.0, NAN),
        "encoder_layer_drop": (-0.1,),
        "codebook_size": (0,),
        "num_codebooks": (13,),
    },
}
CASES = [(kind, *case) for kind, fields in BAD.items() for case in fields.items()]


@pytest.mark.parametrize(("kind", "field", "values"), CASES)
def test_a_bad_value_is_refused_by_the_fields_name(
    kind: type, field: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{field} = .*allowed is"):
            kind(**{field: value})
