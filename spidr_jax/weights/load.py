"""A model from wherever it lies: an Orbax run or checkpoint, or a file of the PyTorch side."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spidr_jax.data.files import local_path
from spidr_jax.model.checks import build
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import orbax
from spidr_jax.weights.check import check_arrays, expected_arrays, named, one_error

Tree = dict[str, Any]
PARTS = ("params", "teacher", "codebooks")  # of a training state: what the model is


class StoredModel(NamedTuple):
    """A model's arrays in numpy, with what describes them."""

    path: Path
    config: ModelConfig
    run_config: dict[str, Any]  # a run's config as far as it is known
    step: int  # finished steps
    arrays: dict[str, Tree]  # PARTS, or "params" where only the student was asked for


def read(
    path: str | os.PathLike[str], model_type: str | None = None, student_only: bool = False
) -> StoredModel:
    """Read a model.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, or a .pt or
            .safetensors file.
        model_type: "spidr" or "dinosr", for a file that does not say it.
        student_only: leave teacher and codebooks out; a file need not have them then.

    Raises:
        FileNotFoundError: there is nothing there.
        ImportError: torch or safetensors is needed for that file.
        ValueError: it cannot be used; the message says why in one line.
    """
    path = local_path(path)
    parts = PARTS[:1] if student_only else PARTS
    with one_error(path):
        return _read_orbax(path, parts) if path.is_dir() else _read_torch(path, model_type, parts)


def shapes(config: ModelConfig, parts: tuple[str, ...] = PARTS) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's arrays by name, as its initialiser draws them."""
    return {name: x.shape for name, x in named(expected_arrays(config, parts)).items()}


def _read_orbax(path: Path, parts: tuple[str, ...]) -> StoredModel:
    def check(place: Path, config: Tree, arrays: Mapping[str, Any]) -> None:
        wanted = {"step": (), **shapes(_model_config(place, config), parts)}
        step = {"step": np.empty(arrays["step"].shape, np.float32)} if "step" in arrays else {}
        check_arrays(str(place), {**arrays, **step}, wanted)

    saved = orbax.read(path, parts.__contains__, check)
    config = _model_config(saved.path, saved.config)
    check_arrays(str(saved.path), named(saved.state), shapes(config, parts))
    return StoredModel(saved.path, config, saved.config, saved.step, saved.state)


def _read_torch(path: Path, model_type: str | None, parts: tuple[str, ...]) -> StoredModel:
    from spidr_jax.weights import torch_files, torch_names  # a run of one's own needs none of it

    file = torch_files.read(path, model_type)
    others = tuple(f"{name}." for name in PARTS if name not in parts)
    state = {name: value for name, value in file.state.items() if not name.startswith(others)}
    torch_names.check(str(path), state, file.config, parts)
    arrays = torch_names.from_torch(state, parts)
    return StoredModel(path, file.config, file.sections, file.step, arrays)


def _model_config(place: Path, config: Tree) -> ModelConfig:
    fields = config.get("model", {})
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"{place}: this version of spidr_jax does not know config.model's fields "
            f"{', '.join(unknown)}; load it with the version that trained it"
        )
    return build(ModelConfig, fields, f"{place}: config.model.")
