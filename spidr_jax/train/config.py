"""A run's config: frozen dataclasses are its schema, flags and files are ml_collections'.

A section of the config is a field whose type is a dataclass. Sections check their own values when
they are made.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from spidr_jax.model.checks import build as build
from spidr_jax.model.checks import check_fields, is_integer

PRECISIONS = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
_RENAMED = {"data.num_rungs": "data.num_buckets"}  # fields of older runs


def free(default: Any) -> Any:
    """A field that may change when a run is resumed."""
    return dataclasses.field(default=default, metadata={"free": True})


def section(kind: type, free: bool = False) -> Any:
    """A field that is a section, with the defaults of its type."""
    return dataclasses.field(default_factory=kind, metadata={"free": free})


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved and which checkpoints stay."""

    every: int = 2_500  # steps
    keep: int = 3  # newest checkpoints
    keep_every: int = 0  # those of every so many steps stay too
    best: str = ""  # metric of a validation, such as dev/loss, whose best checkpoint stays too

    def __post_init__(self) -> None:
        check_fields(
            self,
            [
                ("every", is_integer(self.every, 1), "an integer from 1"),
                ("keep", is_integer(self.keep, 1), "an integer from 1"),
                ("keep_every", is_integer(self.keep_every, 0), "an integer from 0"),
                (
                    "keep_every",
                    self.keep_every % self.every == 0,
                    f"a multiple of checkpoint.every = {self.every}",
                ),
            ],
        )


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """Where the state lies."""

    fsdp: bool = False  # split the state over the devices: less memory, more traffic


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains; a task's config adds fields and sections."""

    workdir: str = free("")  # where the run lies; empty: runs/ + the name of the config file
    init_from: str = free("")  # run, checkpoint or file whose weights a new run starts from
    resume_step: int | None = free(None)  # checkpoint to resume from; 0: a new start
    allow_changes: str = free("")  # fields, such as "optimizer.lr,data", that may differ on resume
    seed: int = 0
    steps: int = free(400_000)  # only ends the run
    precision: str = "bfloat16"  # of the computation; state, sums and losses are float32
    log_every: int = free(200)
    max_skipped: int = free(10)  # updates in a row that are not finite, before the run stops
    watchdog_seconds: int = free(900)  # without a finished step, then the process ends; 0: never
    evaluation_every: int = free(10_000)  # steps; at the start and at the end too, 0: only then
    validation_every: int = free(2_500)  # steps; at the start and at the end too
    compilation_cache: str = free("~/.cache/spidr_jax/xla")  # of compiled programs; empty: none
    tensorboard: bool = free(False)  # event files in workdir/tensorboard
    wandb: str = free("")  # Weights & Biases project
    checkpoint: CheckpointConfig = section(CheckpointConfig, free=True)
    sharding: ShardingConfig = section(ShardingConfig, free=True)

    def __post_init__(self) -> None:
        at_least = {
            **{"seed": 0, "steps": 1, "log_every": 1, "max_skipped": 1, "watchdog_seconds": 0},
            **{"evaluation_every": 0, "validation_every": 1},
        }
        if self.resume_step is not None:
            at_least["resume_step"] = 0
        checks = [
            (name, is_integer(getattr(self, name), least), f"an integer from {least}")
            for name, least in at_least.items()
        ]
        checks.append(("precision", self.precision in PRECISIONS, " or ".join(PRECISIONS)))
        fit = all(_has(type(self), name) for name in allowed_changes(self))
        checks.append(("allow_changes", fit, "fields of the config, such as data"))
        check_fields(self, checks)


def defaults(config: Any) -> ConfigDict:
    """A config as flags and config files change it."""
    made = ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = defaults(value)
        elif hints[field.name] is float:
            value = float(value)
        elif value is None:
            (kind,) = (k for k in typing.get_args(hints[field.name]) if k is not types.NoneType)
            value = placeholder(kind)
        made[field.name] = value
    return made


def to_json(config: Any) -> dict[str, Any]:
    """The config as JSON holds it."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def to_text(config: Any) -> str:
    """The config as config.json holds it."""
    return json.dumps(to_json(config), indent=2) + "\n"


def allowed_changes(config: RunConfig) -> list[str]:
    """The fields and sections that the user lets differ from the checkpoint's."""
    return [name.strip() for name in config.allow_changes.split(",") if name.strip()]


def changes(
    config: Any,
    saved: Mapping[str, Any],
    allowed: Sequence[str] = (),
    *,
    absent_counts: bool = True,
) -> list[str]:
    """The fields that a run may not change on resume and that differ, one text each.

    Args:
        config: the config now.
        saved: the config that a checkpoint was saved with, as JSON.
        allowed: fields and sections that may differ, beside those that always may.
        absent_counts: whether a field that the saved config lacks had its default then.
    """
    before = {_RENAMED.get(name, name): value for name, value in flatten(saved).items()}
    if absent_counts:
        before = flatten(to_json(type(config)())) | before
    ignored = [*_free(type(config)), *allowed]
    return differences(before, flatten(to_json(config)), ignored)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = ()
) -> list[str]:
    """Fields, from `flatten`, that are in both and differ, one text each.

    Args:
        before: earlier values.
        now: present values.
        ignored: fields and sections that may differ.
    """
    return [
        f"config.{name} was {before[name]!r} and is {now[name]!r}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name] and not any(f"{name}.".startswith(f"{x}.") for x in ignored)
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config in JSON by names such as `optimizer.lr`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        section = isinstance(value, Mapping)
        found |= flatten(value, f"{prefix}{name}.") if section else {f"{prefix}{name}": value}
    return found


def _free(kind: Any, prefix: str = "") -> list[str]:
    """Fields and sections that may always change on resume."""
    found, hints = [], typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if field.metadata.get("free"):
            found.append(name)
        elif dataclasses.is_dataclass(hints[field.name]):
            found += _free(hints[field.name], f"{name}.")
    return found


def set_jax_options(config: RunConfig) -> None:
    """Set what every program that runs the training step needs of JAX, for this process."""
    if config.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    # or a compilation cache never knows a program for several devices again: ops/partition.py
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def _has(kind: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    return first in hints and (not rest or _has(hints[first], rest))
