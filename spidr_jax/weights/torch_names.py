"""The name table between this package's parameters and the PyTorch reference's state dict.

Arrays are numpy on both sides; a matrix or kernel has its axes in reverse order.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from spidr_jax.method.codebook import CodebookState
from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights.check import check_arrays

Tree = dict[str, Any]
State = Mapping[str, np.ndarray]
STUDENT_MODULES = ("feature_extractor", "feature_projection", "student")
STEP = "current_step"  # the reference's count of finished steps, int64 [1]


def to_torch(params: Tree, teacher: Tree, codebooks: CodebookState) -> dict[str, np.ndarray]:
    """Name and lay out parameters, teacher and codebooks as the reference's state dict does."""
    state = student_to_torch(params)
    for path, value in _leaves({"teacher": teacher}):
        state[torch_name(path)] = np.asarray(value).T
    for k in range(len(codebooks.counts)):
        state[f"codebooks.{k}.codebook"] = np.asarray(codebooks.sums[k])
        state[f"codebooks.{k}.counts"] = np.asarray(codebooks.counts[k])
    return state


def parts_to_torch(parts: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """As `to_torch`, of what a run's state has read as plain dicts."""
    codebooks = CodebookState(**parts["codebooks"])
    return to_torch(parts["params"], parts["teacher"], codebooks)


def student_to_torch(params: Tree) -> dict[str, np.ndarray]:
    """The student side's part of `to_torch`."""
    state = {"mask_embedding": np.asarray(params["mask_embedding"])}
    for path, value in _leaves({name: params[name] for name in STUDENT_MODULES}):
        state[torch_name(path)] = np.asarray(value).T
    kernel, bias = (np.asarray(params["heads"][name]) for name in ("kernel", "bias"))
    for k in range(kernel.shape[0]):
        state[f"heads.{k}.0.weight"], state[f"heads.{k}.0.bias"] = kernel[k].T, bias[k]
    return state


def from_torch(state: State) -> tuple[Tree, Tree, CodebookState]:
    """Undo `to_torch`: parameters, teacher and codebooks from the reference's state dict."""
    sums, counts = (_stack(state, f"codebooks.{{}}.{name}") for name in ("codebook", "counts"))
    teacher = _tree(state, ("teacher",))["teacher"]
    return student_from_torch(state), teacher, CodebookState(sums, counts)


def parts_from_torch(state: State) -> dict[str, Tree]:
    """As `from_torch`, by the names of a training state and in plain dicts, as read from a run."""
    params, teacher, codebooks = from_torch(state)
    return {"params": params, "teacher": teacher, "codebooks": codebooks._asdict()}


def student_from_torch(state: State) -> Tree:
    """Undo `student_to_torch`; what else the state dict holds is left alone."""
    return _tree(state, STUDENT_MODULES) | {
        "heads": {
            "kernel": _stack(state, "heads.{}.0.weight").swapaxes(1, 2),
            "bias": _stack(state, "heads.{}.0.bias"),
        },
        "mask_embedding": state["mask_embedding"],
    }


def shapes(config: ModelConfig, student_only: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the reference's state dict, without its step counter."""
    drawn = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    params = jax.tree.map(lambda x: _empty(*x.shape), drawn)
    rows = (config.num_codebooks, config.codebook_size)
    codebooks = CodebookState(_empty(*rows, config.encoder_embed_dim), _empty(*rows))
    whole = to_torch(params, params["student"], codebooks)
    chosen = student_to_torch(params) if student_only else whole
    return {name: value.shape for name, value in chosen.items()}


def check(place: str, state: State, config: ModelConfig, student_only: bool = False) -> None:
    """Compare the tensors of a state dict with those that the architecture has.

    Raises:
        ValueError: listing what is missing, unknown or misshapen, by name.
    """
    tensors = {name: value for name, value in state.items() if name != STEP}
    check_arrays(f"{place} ({config.model_type})", tensors, shapes(config, student_only))


def _empty(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


def _tree(state: State, modules: Collection[str]) -> Tree:
    tree: Tree = {}
    for name, value in state.items():
        if name.split(".")[0] in modules:
            *parents, leaf = _path(name, value.ndim)
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value.T
    return tree


def _stack(state: State, name: str) -> np.ndarray:
    found: list[np.ndarray] = []
    while name.format(len(found)) in state:
        found.append(state[name.format(len(found))])
    return np.stack(found)


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    leaves = []
    for name, value in tree.items():
        here = (*path, name)
        leaves += _leaves(value, here) if isinstance(value, dict) else [(here, value)]
    return leaves


def torch_name(path: tuple[str, ...]) -> str:
    """("student", "layers_0", "attention", "qkv", "kernel") -> student.layers.0...weight."""
    *parents, leaf = path
    leaf = "bias" if leaf == "bias" else "weight"
    return ".".join([*(re.sub(r"_(\d+)$", r".\1", name) for name in parents), leaf])


def _path(name: str, rank: int) -> list[str]:
    *parents, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "scale" if rank == 1 else "kernel"
    return [*parents, leaf]
