"""A model from wherever it lies: an Orbax run or checkpoint, or a file of the PyTorch side."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from spidr_jax.model import model
from spidr_jax.model.config import ModelConfig
from spidr_jax.weights import orbax
from spidr_jax.weights.check import check_arrays, named

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
    path = Path(path)
    parts = PARTS[:1] if student_only else PARTS
    return _read_orbax(path, parts) if path.is_dir() else _read_torch(path, model_type, parts)


def shapes(config: ModelConfig, parts: tuple[str, ...] = PARTS) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters and teacher by name, as its initialiser draws them."""
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    drawn = {"params": params, "teacher": params["student"]}
    return {name: x.shape for name, x in named({n: drawn[n] for n in parts if n in drawn}).items()}


def _read_orbax(path: Path, parts: tuple[str, ...]) -> StoredModel:
    saved = orbax.read(path, parts.__contains__)
    if missing := [name for name in parts if name not in saved.state]:
        raise ValueError(f"{saved.path}: its state lacks {', '.join(missing)}")
    config = _model_config(saved)
    arrays = named({name: tree for name, tree in saved.state.items() if name != "codebooks"})
    check_arrays(str(saved.path), arrays, shapes(config, parts))
    return StoredModel(saved.path, config, saved.config, saved.step, saved.state)


def _read_torch(path: Path, model_type: str | None, parts: tuple[str, ...]) -> StoredModel:
    from spidr_jax.weights import torch_files, torch_names  # a run of one's own needs none of it

    file = torch_files.read(path, model_type)
    others = tuple(f"{name}." for name in PARTS if name not in parts)
    state = {name: value for name, value in file.state.items() if not name.startswith(others)}
    torch_names.check(str(path), state, file.config, parts)
    arrays = torch_names.from_torch(state, parts)
    return StoredModel(path, file.config, file.sections, file.step, arrays)


def _model_config(saved: orbax.Saved) -> ModelConfig:
    fields = {name: _tuples(value) for name, value in saved.config.get("model", {}).items()}
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"{saved.path}: this version of spidr_jax does not know config.model's fields "
            f"{', '.join(unknown)}; load it with the version that trained it"
        )
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{saved.path}: config.model.{error}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
