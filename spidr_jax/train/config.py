"""From the flags' ConfigDict to what the step takes, with every value checked."""

import dataclasses
import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spidr_jax.method.masking import MaskingConfig
from spidr_jax.method.optim import OptimizerConfig
from spidr_jax.method.step import StepConfig
from spidr_jax.method.teacher import TeacherConfig
from spidr_jax.model.checks import is_integer
from spidr_jax.model.config import ModelConfig

PRECISIONS = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
FREE = (  # may change on resume; what the data are, the plan's fingerprint knows
    "workdir",
    "steps",
    "log_every",
    "max_skipped",
    "watchdog_seconds",
    "evaluation",
    "evaluation_every",
    "evaluation_share",
    "validation",
    "validation_every",
    "compilation_cache",
    "tensorboard",
    "wandb",
    "checkpoint",
    "sharding",
    "memory",
    "init_from",
    "resume_step",
    "allow_changes",
    "corpus",
    "data.manifest",
    "data.sources",
    "data.embedded_corpus",
    "data.num_threads",
    "data.max_bad_share",
)
FIELDS = {  # by section
    "": (
        *("workdir", "init_from", "resume_step", "allow_changes", "seed", "steps", "freeze_step"),
        *("precision", "log_every", "max_skipped", "watchdog_seconds", "evaluation"),
        *("evaluation_every", "evaluation_share", "validation", "validation_every"),
        *("compilation_cache", "tensorboard", "wandb", "model", "codebook", "teacher", "masking"),
        *("optimizer", "data", "sharding", "memory", "checkpoint"),
    ),
    "model": tuple(field.name for field in dataclasses.fields(ModelConfig)),
    "codebook": ("decay",),
    "teacher": tuple(field.name for field in dataclasses.fields(TeacherConfig)),
    "masking": tuple(field.name for field in dataclasses.fields(MaskingConfig)),
    "optimizer": tuple(field.name for field in dataclasses.fields(OptimizerConfig)),
    "data": (
        *("manifest", "sources", "embedded_corpus", "min_samples", "max_samples", "num_rungs"),
        *("max_batch_samples", "planned_devices", "num_threads", "max_bad_share"),
    ),
    "sharding": ("fsdp",),
    "memory": ("accumulate", "remat"),
    "checkpoint": ("every", "keep", "keep_every", "best"),
}
_OWN = "corpus"  # that a config file may add, to make other fields of
_SHORTEST = 2640  # samples of a crop
_PLAN_LIMITS = ("min_samples", "max_samples", "num_rungs", "max_batch_samples", "planned_devices")
Section = TypeVar("Section")


def validate(config: ConfigDict) -> None:
    """Check every value of a config that no other part checks when it takes it.

    Raises:
        ValueError: with one line that names field, value and what is allowed.
        FileNotFoundError: the manifest does not exist.
    """
    _check_names(config)
    framing = step_config(config).model.framing
    least = {
        "seed": 0,
        "steps": 1,
        "log_every": 1,
        "evaluation_every": 0,
        "validation_every": 1,
        "max_skipped": 1,
        "freeze_step": 0,
        "watchdog_seconds": 0,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "checkpoint.keep_every": 0,
        "data.num_rungs": 1,
        "data.planned_devices": 1,
        "data.num_threads": 1,
        "data.min_samples": 0,
        "memory.accumulate": 1,
    }
    if config.resume_step is not None:
        least["resume_step"] = 0
    for name, bound in least.items():
        _check(config, name, is_integer(_get(config, name), bound), f"an integer from {bound}")
    every = config.checkpoint.every
    apart = config.checkpoint.keep_every % every == 0
    _check(config, "checkpoint.keep_every", apart, f"a multiple of checkpoint.every = {every}")
    for name in allowed_changes(config):
        _check(config, "allow_changes", _has(config, name), "fields of the config, such as data")
    _check(config, "codebook.decay", 0 <= config.codebook.decay < math.inf, "a number from 0")
    share = 0 < config.evaluation_share <= 1
    _check(config, "evaluation_share", share, "a number above 0 to 1")
    _check(config, "data.max_bad_share", 0 <= config.data.max_bad_share <= 1, "0 to 1")
    _check(
        config,
        "model.extractor_conv_layer_config",
        framing.num_frames(_SHORTEST) >= 1,
        f"convolutions that give a frame for {_SHORTEST} samples (two flags of it add up)",
    )
    for name in ("data.max_samples", "data.max_batch_samples"):
        floor = max(config.data.min_samples, _SHORTEST)
        _check(config, name, _get(config, name) >= floor, f"at least {floor} samples")
    manifest, sources = config.data.manifest, config.data.sources
    _check(
        config,
        "data.manifest",
        bool(manifest) != bool(sources),
        "the path of a manifest, or data.sources instead of it",
    )
    if manifest and not config.data.embedded_corpus and not Path(manifest).is_file():
        raise FileNotFoundError(f"config.data.manifest = {manifest!r}: there is no such file")


def step_config(config: ConfigDict) -> StepConfig:
    """What the training step takes of a config.

    Raises:
        ValueError: with one line that names field, value and what is allowed.
    """
    _check(config, "precision", config.precision in PRECISIONS, " or ".join(PRECISIONS))
    return StepConfig(
        model=_section(config, "model", ModelConfig),
        masking=_section(config, "masking", MaskingConfig),
        optimizer=_section(config, "optimizer", OptimizerConfig),
        teacher=_section(config, "teacher", TeacherConfig),
        codebook_decay=config.codebook.decay,
        freeze_step=config.freeze_step,
        dtype=PRECISIONS[config.precision],
        accumulate=config.memory.accumulate,
        remat=config.memory.remat,
    )


def set_jax_options(config: ConfigDict) -> None:
    """Set what every program that runs the training step needs of JAX, for this process."""
    if config.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    # or a compilation cache never knows a program for several devices again: grouped_conv.py
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def plan_limits(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `make_plan` that a config has."""
    return {name: config.data[name] for name in _PLAN_LIMITS}


def innermost(error: Exception) -> Any:
    """What an error tells: ml_collections wraps that of an unknown field in others."""
    told: Any = error
    while isinstance(told, Exception) and told.args:
        told = told.args[-1]
    return told


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as JSON holds it."""
    return json.loads(config.to_json())


def allowed_changes(config: ConfigDict) -> list[str]:
    """The fields and sections that the user lets differ from the checkpoint's."""
    return [name.strip() for name in config.allow_changes.split(",") if name.strip()]


def changes(
    saved: dict[str, Any],
    config: dict[str, Any],
    allowed: Sequence[str] = (),
    prefix: str = "",
    free: Sequence[str] = FREE,
) -> list[str]:
    """The fields that a run may not change on resume and that differ, one text each.

    Args:
        saved: the config that a checkpoint was saved with.
        config: the config now.
        allowed: fields and sections that may differ, beside those that always may.
        prefix: the section's name and a dot.
        free: the fields that always may.
    """
    found = []
    for name in sorted(saved.keys() | config.keys()):
        old, new, field = saved.get(name), config.get(name), f"{prefix}{name}"
        if field in free or field in allowed:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, allowed, f"{field}.", free)
        elif old != new:
            found.append(f"config.{field} was {old!r} and is {new!r}")
    return found


def known(config: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The part of a config whose fields the saved one has too: an imported one has not all."""
    return {
        name: known(value, saved[name]) if isinstance(saved[name], dict) else value
        for name, value in config.items()
        if name in saved
    }


def _check_names(config: ConfigDict) -> None:
    """Refuse fields that a config file of one's own misspells, adds or lacks."""
    for section, names in FIELDS.items():
        there = config[section] if section else config
        prefix = f"config.{section}." if section else "config."
        for name in there:
            if name not in (*names, _OWN):
                near = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{prefix}{name}: there is no such field{hint}")
        for name in names:
            if name not in there:
                raise ValueError(f"{prefix}{name} is missing: configs/base.py has all fields")


def _section(config: ConfigDict, name: str, kind: type[Section]) -> Section:
    try:
        return kind(**config[name])
    except ValueError as error:
        raise ValueError(f"config.{name}.{error}") from None
    except TypeError as error:
        raise ValueError(f"config.{name}: a value is of the wrong type: {error}") from None


def _get(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def _has(config: ConfigDict, name: str) -> bool:
    try:
        _get(config, name)
    except (KeyError, TypeError):
        return False
    return True


def _check(config: ConfigDict, name: str, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"config.{name} = {_get(config, name)!r}: allowed is {allowed}")
