"""The PyTorch reference's training step, on the shapes and the kind of device of ours.

A step is what its training does: forward under autocast where the precision is bfloat16, backward,
clipping, AdamW, learning rate, teacher. Masks are given, as its loader draws them.
"""

import dataclasses
import importlib
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spidr_jax.bench.setups import Setup
from spidr_jax.bench.timing import Start
from spidr_jax.method import masking
from spidr_jax.train import config as config_lib
from spidr_jax.weights import reference_config

EAGER, COMPILED = "reference, eager", "reference, compiled"


def check_installed() -> None:
    """Import PyTorch and the reference.

    Raises:
        ImportError: one is not there.
        ValueError: JAX has a GPU here and PyTorch has none.
    """
    try:
        for name in ("torch", "spidr.models", "spidr.optimizer"):
            importlib.import_module(name)
    except ImportError as error:
        advice = "install it, or set PYTHONPATH to its folder"
        raise ImportError(f"the reference cannot be imported: {error} ({advice})") from None
    if _device() == "cuda" and not _torch().cuda.is_available():
        raise ValueError("JAX runs on a GPU and this PyTorch has none: JAX_PLATFORMS=cpu compares")


def conditions() -> dict[str, Any]:
    """What the reference's times depend on."""
    torch = _torch()
    found = {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    if _device() == "cuda":
        found["torch_peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def make_steps(
    setup: Setup, frozen: bool, batch: dict[str, jax.Array], warm_up: int
) -> tuple[dict[str, Start], dict[str, str]]:
    """The reference's step, eager and compiled with static shapes, each run a few times.

    Returns:
        The steps by name, and why the compiled one is left out where it could not be compiled.
    """
    _torch().set_num_threads(len(os.sched_getaffinity(0)))
    starts, skipped = {}, {}
    for name in (EAGER, COMPILED):
        try:
            with warnings.catch_warnings():  # PyTorch warns of its own parts
                warnings.simplefilter("ignore")
                start = _started(make_step(setup, frozen, batch, name == COMPILED)[1])
                for _ in range(warm_up):
                    start()()
            starts[name] = start
        except Exception as error:  # a compiler that is not there raises anything
            if name == EAGER:
                raise
            first_line = (str(error).strip() or repr(error)).splitlines()[0]
            skipped[name] = f"{type(error).__name__}: {first_line}"
    return starts, skipped


def make_step(
    setup: Setup, frozen: bool, batch: dict[str, jax.Array], compiled: bool
) -> tuple[Any, Callable[[], None]]:
    """A fresh reference model, and what trains it by a step."""
    torch, device = _torch(), _device()
    config = setup.step_config
    model = _build_model(setup, frozen).to(device)
    forward = torch.compile(model, dynamic=False) if compiled else model
    waveforms, indices = (torch.from_numpy(x).to(device) for x in _inputs(setup, batch))
    optimizer, scheduler = _build_optimizer(setup, model)
    finished = 0

    def step() -> None:
        nonlocal finished
        with torch.autocast(device, torch.bfloat16, enabled=config.dtype == jnp.bfloat16):
            losses, _ = forward(waveforms, mask_indices=indices)
            loss = losses.mean()
        loss.backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        finished += 1
        model.update_ema(finished)

    if frozen:
        step()  # which is the last of the phase before
        from spidr.checkpoint import remove_param_group

        remove_param_group(optimizer, scheduler, 1)
    return model, step


def _build_model(setup: Setup, frozen: bool) -> Any:
    """A fresh reference model of a config, in training mode; frozen from its second step on."""
    from spidr.config import DinoSRConfig, SpidRConfig
    from spidr.models.dinosr import DinoSR
    from spidr.models.spidr import SpidR

    run = config_lib.to_json(setup.config) | ({"freeze_step": 1} if frozen else {})
    content = reference_config.to_reference(setup.step_config.model, run)
    fields = json.loads(json.dumps(content["model"]))  # lists, as its own files give
    _torch().manual_seed(0)
    if setup.step_config.model.model_type == "spidr":
        return SpidR(SpidRConfig(**fields)).train()
    return DinoSR(DinoSRConfig(**fields)).train()


def _build_optimizer(setup: Setup, model: Any) -> tuple[Any, Any]:
    from spidr.config import OptimizerConfig
    from spidr.optimizer import build_optimizer

    fields = dataclasses.asdict(setup.step_config.optimizer)
    del fields["name"]
    config = OptimizerConfig(**fields, dtype=setup.config.precision)
    optimizer, _, scheduler = build_optimizer(model, config)
    return optimizer, scheduler


def _inputs(setup: Setup, batch: dict[str, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Standardised waveforms [B, S], and the masked frames of each row, as many in each."""
    pcm, mean, inv_std = (np.asarray(batch[name]) for name in ("waveforms", "mean", "inv_std"))
    waveforms = (pcm.astype(np.float32) - mean[:, None]) * inv_std[:, None]
    law = dataclasses.replace(setup.step_config.masking, group_rows=setup.rows)
    lengths = jnp.full(setup.rows, setup.frames)
    mask = masking.sample_spans(jax.random.key(0), setup.frames, lengths, law)
    return waveforms, np.nonzero(np.asarray(mask))[1].reshape(setup.rows, -1)


def _started(step: Callable[[], None]) -> Start:
    torch = _torch()
    if _device() == "cpu":  # nothing goes on after the call

        def run() -> Callable[[], None]:
            step()
            return lambda: None

        return run

    def start() -> Callable[[], None]:
        step()
        ended = torch.cuda.Event()
        ended.record()
        return ended.synchronize

    return start


def _device() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def _torch() -> Any:
    return importlib.import_module("torch")
