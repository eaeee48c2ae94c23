"""A model from wherever it lies: an Orbax run or checkpoint, or a file of the PyTorch side."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from spidr_jax.method.codebook import CodebookState
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import orbax as orbax_files
from spidr_jax.weights import torch_files, torch_names

Tree = dict[str, Any]


class StoredModel(NamedTuple):
    """A model's arrays in numpy, with what describes them."""

    path: Path
    config: ModelConfig
    run_config: dict[str, Any]  # a run's config as far as it is known
    step: int  # finished steps
    params: Tree
    teacher: Tree | None  # None where only the student was asked for
    codebooks: CodebookState | None


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
    path = Path(path)
    if path.is_dir():
        return _read_orbax(path, student_only)
    file = torch_files.read(path, model_type)
    state = file.state
    if student_only:
        state = {n: v for n, v in state.items() if not n.startswith(("teacher.", "codebooks."))}
    torch_names.check(str(path), state, file.config, student_only)
    arrays: tuple[Any, ...]
    if student_only:
        arrays = (torch_names.student_from_torch(state), None, None)
    else:
        arrays = torch_names.from_torch(state)
    return StoredModel(path, file.config, file.sections, file.step, *arrays)


def _read_orbax(path: Path, student_only: bool) -> StoredModel:
    wanted = ("params",) if student_only else ("params", "teacher", "codebooks")
    saved = orbax_files.read(path, wanted.__contains__)
    if missing := [name for name in wanted if name not in saved.state]:
        raise ValueError(f"{saved.path}: its state lacks {', '.join(missing)}")
    config = _model_config(saved)
    teacher = saved.state.get("teacher")
    codebooks = CodebookState(**saved.state["codebooks"]) if not student_only else None
    params = saved.state["params"]
    state = torch_names.student_to_torch(params)
    if teacher is not None and codebooks is not None:
        state = torch_names.to_torch(params, teacher, codebooks)
    torch_names.check(str(saved.path), state, config, student_only)
    return StoredModel(saved.path, config, saved.config, saved.step, params, teacher, codebooks)


def _model_config(saved: orbax_files.Saved) -> ModelConfig:
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    fields = {name: value for name, value in saved.config.get("model", {}).items() if name in names}
    if "extractor_conv_layer_config" in fields:
        layers = fields["extractor_conv_layer_config"]
        fields["extractor_conv_layer_config"] = tuple(tuple(layer) for layer in layers)
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{saved.path}: config.model.{error}") from None
