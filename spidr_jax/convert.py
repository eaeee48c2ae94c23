"""The name table between this package's parameters and the PyTorch reference's state dict.

Arrays are numpy on both sides; a matrix or kernel has its axes in reverse order.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from spidr_jax.codebook import CodebookState

Tree = dict[str, Any]
STUDENT_MODULES = ("feature_extractor", "feature_projection", "student")


def to_torch(params: Tree, teacher: Tree, codebooks: CodebookState) -> dict[str, np.ndarray]:
    """Name and lay out parameters, teacher and codebooks as the reference's state dict does."""
    modules = {name: params[name] for name in STUDENT_MODULES} | {"teacher": teacher}
    state = {"mask_embedding": np.asarray(params["mask_embedding"])}
    for path, value in _leaves(modules):
        state[_torch_name(path)] = np.asarray(value).T
    kernel, bias = (np.asarray(params["heads"][name]) for name in ("kernel", "bias"))
    for k in range(kernel.shape[0]):
        state[f"heads.{k}.0.weight"], state[f"heads.{k}.0.bias"] = kernel[k].T, bias[k]
        state[f"codebooks.{k}.codebook"] = np.asarray(codebooks.sums[k])
        state[f"codebooks.{k}.counts"] = np.asarray(codebooks.counts[k])
    return state


def from_torch(state: Mapping[str, np.ndarray]) -> tuple[Tree, Tree, CodebookState]:
    """Undo `to_torch`: parameters, teacher and codebooks from the reference's state dict."""
    tree: Tree = {}
    for name, value in state.items():
        if name.split(".")[0] in (*STUDENT_MODULES, "teacher"):
            *parents, leaf = _path(name, value.ndim)
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value.T
    number = sum(name.endswith(".counts") for name in state)
    teacher = tree.pop("teacher")
    tree["heads"] = {
        "kernel": np.stack([state[f"heads.{k}.0.weight"].T for k in range(number)]),
        "bias": np.stack([state[f"heads.{k}.0.bias"] for k in range(number)]),
    }
    tree["mask_embedding"] = state["mask_embedding"]
    sums, counts = (
        np.stack([state[f"codebooks.{k}.{name}"] for k in range(number)])
        for name in ("codebook", "counts")
    )
    return tree, teacher, CodebookState(sums, counts)


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    leaves = []
    for name, value in tree.items():
        here = (*path, name)
        leaves += _leaves(value, here) if isinstance(value, dict) else [(here, value)]
    return leaves


def _torch_name(path: tuple[str, ...]) -> str:
    """("student", "layers_0", "attention", "qkv", "kernel") -> student.layers.0...weight."""
    *parents, leaf = path
    leaf = "bias" if leaf == "bias" else "weight"
    return ".".join([*(re.sub(r"_(\d+)$", r".\1", name) for name in parents), leaf])


def _path(name: str, rank: int) -> list[str]:
    *parents, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "scale" if rank == 1 else "kernel"
    return [*parents, leaf]
