"""The original DinoSR checkpoint (written by fairseq) in the PyTorch reference's names.

Its layers have separate query, key and value projections with biases, its teacher lies under
`_ema`, its codebooks under `_codebook{i}` and `_codebook_cnts{i}`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

TEACHER = "_ema"
_ENCODER = (  # patterns of the student's names after "encoder.", and of the teacher's
    (r"^layer_norm\.", "layer_norm."),
    (r"^pos_conv\.(\d+)\.0\.", r"pos_conv_embed.convs.\1."),
    (r"^(layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
    (r"^(layers\.\d+)\.self_attn\.out_proj\.", r"\1.attention.proj."),
    (r"^(layers\.\d+)\.self_attn\.([qkv])_proj\.", r"\1.attention.\2."),
    (r"^(layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(layers\.\d+)\.final_layer_norm\.", r"\1.final_layer_norm."),
)
_OTHER = (
    (r"^mask_emb$", "mask_embedding"),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
    (r"^(heads\.\d+)\.", r"\1.0."),
    (r"^_codebook(\d+)$", r"codebooks.\1.codebook"),
    (r"^_codebook_cnts(\d+)$", r"codebooks.\1.counts"),
)


def is_fairseq(state: Mapping[str, Any]) -> bool:
    """Whether a state dict is of that form."""
    return TEACHER in state or "post_extract_proj.weight" in state


def rename(student: Mapping[str, np.ndarray], teacher: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The reference's state dict from the checkpoint's `model` and the `_ema` in it.

    Names that are not of that form stay as they are, so that a check names them.
    """
    renamed = {}
    for name, value in student.items():
        inner = name.removeprefix("encoder.")
        if inner != name:
            renamed["student." + _rename(inner, _ENCODER)] = value
        else:
            renamed[_rename(name, _OTHER)] = value
    renamed |= {"teacher." + _rename(name, _ENCODER): value for name, value in teacher.items()}
    return _join_qkv(renamed)


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    return name


def _join_qkv(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put q, k and v one after another where all three are there, each [D, D] or [D]."""
    joined = dict(state)
    for name in state:
        if match := re.fullmatch(r"(.+\.attention)\.q\.(weight|bias)", name):
            parts = [f"{match[1]}.{letter}.{match[2]}" for letter in "qkv"]
            if all(part in state for part in parts):
                qkv = np.concatenate([joined.pop(part) for part in parts])
                joined[f"{match[1]}.qkv.{match[2]}"] = qkv
    return joined
