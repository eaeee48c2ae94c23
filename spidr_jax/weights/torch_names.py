"""The name table between this package's parameters and the PyTorch reference's state dict.

Arrays are numpy on both sides; a matrix or kernel has its axes in reverse order.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from spidr_jax.model.config import ModelConfig
from spidr_jax.weights.check import check_arrays, expected_arrays, named

Tree = dict[str, Any]
State = Mapping[str, np.ndarray]
STUDENT_MODULES = ("feature_extractor", "feature_projection", "student")
STEP = "current_step"  # the reference's count of finished steps, int64 [1]


def to_torch(parts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Name and lay out a model's parts as the reference's state dict does.

    Args:
        parts: "params" and, unless it is the student alone, "teacher" and "codebooks".
    """
    params = parts["params"]
    modules = {name: params[name] for name in STUDENT_MODULES}
    heads, stacked = params["heads"], {}
    if "teacher" in parts:
        modules["teacher"] = parts["teacher"]
    if "codebooks" in parts:
        codes = named(parts["codebooks"])
        stacked = {"codebooks.{}.codebook": codes["sums"], "codebooks.{}.counts": codes["counts"]}
    stacked |= {
        "heads.{}.0.weight": heads["kernel"].swapaxes(1, 2),
        "heads.{}.0.bias": heads["bias"],
    }
    state = {torch_name(name): np.asarray(value).T for name, value in named(modules).items()}
    for name, arrays in stacked.items():
        state |= {name.format(k): array for k, array in enumerate(np.asarray(arrays))}
    return state | {"mask_embedding": np.asarray(params["mask_embedding"])}


def from_torch(state: State, parts: Collection[str]) -> dict[str, Tree]:
    """Undo `to_torch` for some parts; what else the state dict holds is left alone."""
    heads = {
        "kernel": _stack(state, "heads.{}.0.weight").swapaxes(1, 2),
        "bias": _stack(state, "heads.{}.0.bias"),
    }
    student = {"heads": heads, "mask_embedding": state["mask_embedding"]}
    found = {"params": _tree(state, STUDENT_MODULES) | student}
    if "teacher" in parts:
        found |= _tree(state, ("teacher",))
    if "codebooks" in parts:
        sums, counts = (_stack(state, f"codebooks.{{}}.{n}") for n in ("codebook", "counts"))
        found["codebooks"] = {"sums": sums, "counts": counts}
    return found


def check(place: str, state: State, config: ModelConfig, parts: Collection[str]) -> None:
    """Compare the tensors of a state dict with those that these parts of the model have.

    Raises:
        ValueError: listing what is missing, unknown or misshapen, by name.
    """
    tensors = {name: value for name, value in state.items() if name != STEP}
    expected = expected_arrays(config, parts)
    empty = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), expected)
    shapes = {name: value.shape for name, value in to_torch(empty).items()}
    check_arrays(f"{place} ({config.model_type})", tensors, shapes)


def _tree(state: State, modules: Collection[str]) -> Tree:
    found = {n: value for n, value in state.items() if n.split(".")[0] in modules}
    return unflatten_dict({_path(name, value.ndim): value.T for name, value in found.items()})


def _stack(state: State, name: str) -> np.ndarray:
    found: list[np.ndarray] = []
    while name.format(len(found)) in state:
        found.append(state[name.format(len(found))])
    return np.stack(found)


def torch_name(name: str) -> str:
    """student.layers_0.attention.qkv.kernel -> student.layers.0.attention.qkv.weight."""
    parents, _, leaf = name.rpartition(".")
    parents = re.sub(r"_(\d+)(?=\.|$)", r".\1", parents)
    return f"{parents}.{'bias' if leaf == 'bias' else 'weight'}"


def _path(name: str, rank: int) -> tuple[str, ...]:
    *parents, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "scale" if rank == 1 else "kernel"
    return *parents, leaf
