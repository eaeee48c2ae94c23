"""A full training checkpoint of the PyTorch reference as the state of a run here.

AdamW numbers its parameters: first those that train to the end, then extractor and projection
(until they are frozen), in the state dict's order. One that never had a gradient has no moments.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from spidr_jax.method.codebook import CodebookState
from spidr_jax.method.step import TrainState
from spidr_jax.model import model
from spidr_jax.train import optim
from spidr_jax.train.optim import OptimizerConfig
from spidr_jax.weights import torch_names
from spidr_jax.weights.check import named
from spidr_jax.weights.load import PARTS
from spidr_jax.weights.torch_files import TorchFile

Moments = dict[str, Mapping[str, Any]]


def train_state(file: TorchFile) -> TrainState:
    """The state with which training goes on where the PyTorch run stopped.

    Step, parameters, teacher, codebooks and AdamW's moments are the file's; the learning rate is
    a function of the step. AdamW's count is the largest of its parameters' (a layer that DinoSR's
    layer drop left out of some steps has been counted less there).

    Args:
        file: file with `training` filled and its tensors checked.

    Raises:
        ValueError: the optimizer's state does not fit the model, named by parameter.
    """
    parts = torch_names.from_torch(file.state, PARTS)
    params = parts["params"]
    moments, frozen = _moments(file)
    rest = optim.split(params, model.trained(file.config, frozen))[1]
    mu, nu = (_tree(file, moments, name, frozen) for name in ("exp_avg", "exp_avg_sq"))
    _check_complete(file, moments, rest)
    steps = [int(entry["step"]) for entry in moments.values()]
    count = np.asarray(max(steps, default=0), np.int32)
    adamw = optim.make_optimizer(OptimizerConfig()).init({})
    step = int(np.asarray(file.training.get("step", file.step)).reshape(-1)[0])
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        skipped=jnp.asarray(0, jnp.int32),
        params=params,
        opt_state=optax.tree.set(adamw, count=count, mu=mu, nu=nu),
        teacher=parts["teacher"],
        codebooks=CodebookState(**parts["codebooks"]),
    )


def _moments(file: TorchFile) -> tuple[Moments, bool]:
    """AdamW's state by the parameter's name, and whether extractor and projection are frozen."""
    optimizer = file.training["optimizer"]
    groups = [group["params"] for group in optimizer["param_groups"]]
    late = [n for n in _student(file) if n.startswith(tuple(f"{m}." for m in model.FROZEN_MODULES))]
    early = [n for n in _student(file) if n not in late]
    names = [early, late][: len(groups)]
    if [len(group) for group in groups] != [len(group) for group in names]:
        raise ValueError(
            f"{file.path}: its optimizer has groups of {[len(g) for g in groups]} parameters, the "
            f"model {[len(early), len(late)]} (without the second once it is frozen)"
        )
    numbers = dict(zip(itertools.chain(*groups), itertools.chain(*names), strict=True))
    moments = {numbers[number]: entry for number, entry in optimizer["state"].items()}
    for name, entry in moments.items():
        for key in ("exp_avg", "exp_avg_sq"):
            if tuple(entry[key].shape) != file.state[name].shape:
                raise ValueError(
                    f"{file.path}: {key} of {name} is {list(entry[key].shape)} and should be "
                    f"{list(file.state[name].shape)}"
                )
    return moments, len(groups) == 1


def _tree(file: TorchFile, moments: Moments, key: str, frozen: bool) -> dict[str, Any]:
    """One moment in the parameters' structure, zero before the first step, None if untrained."""
    state = {
        name: np.asarray(moments[name][key]) if name in moments else np.zeros_like(value)
        for name, value in file.state.items()
    }
    params = torch_names.from_torch(state, ("params",))["params"]
    return optim.split(params, model.trained(file.config, frozen))[0]


def _check_complete(file: TorchFile, moments: Moments, rest: dict[str, Any]) -> None:
    """Compare the parameters that have moments with all but the untrained rest."""
    untrained = {torch_names.torch_name(name) for name in named(rest)}
    trained = set(_student(file)) - untrained
    if missing := sorted(trained - moments.keys()) if moments else []:
        raise ValueError(f"{file.path}: no optimizer state of {', '.join(missing)}")
    if unknown := sorted(moments.keys() - trained):
        raise ValueError(f"{file.path}: optimizer state of untrained {', '.join(unknown)}")


def _student(file: TorchFile) -> list[str]:
    return [name for name in file.state if not name.startswith(("teacher.", "codebooks."))]
