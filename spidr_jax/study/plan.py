"""Plan of a study: one config, under several values of some fields, with several seeds."""

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spidr_jax.inference.datasets import parse_sets
from spidr_jax.method.config import Config
from spidr_jax.pretraining import check_manifest
from spidr_jax.train import config as config_lib
from spidr_jax.train import config_file

_OWN = {"workdir": "--out says it", "seed": "--seeds says it"}
_LONGEST = 100  # characters of a folder's name


class PlannedRun(NamedTuple):
    """One run of a study.

    Attributes:
        name: name of its folder in the study's.
        setting: the varied fields' values, as written.
        seed: value of `config.seed`.
        steps: number of steps after which it ends.
        command: command that runs it.
    """

    name: str
    setting: dict[str, str]
    seed: int
    steps: int
    command: list[str]


class Study(NamedTuple):
    """Config, varied fields, seeds and runs of a study.

    Attributes:
        config: the resolved config without what is varied, as JSON holds it.
        vary: the values of each field that is varied, as written.
        seeds: seeds of each setting.
        runs: one after another.
    """

    config: dict[str, Any]
    vary: dict[str, list[str]]
    seeds: list[int]
    runs: list[PlannedRun]


def plan(
    file: str, vary: Mapping[str, list[str]], fixed: Mapping[str, str], seeds: int, out: str
) -> Study:
    """Lay a study out and check every value, as flags of a run are checked.

    Args:
        file: the config file.
        vary: fields and their values; every combination is a setting.
        fixed: fields and values of all runs.
        seeds: runs of a setting, with the config's seed and those that follow it.
        out: the study's folder.

    Raises:
        ValueError: with one line that names field, value and what is allowed.
        OSError: the config file, or a file that it names, is missing.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: allowed is an integer from 1")
    if twice := sorted(vary.keys() & fixed.keys()):
        raise ValueError(f"--set {twice[0]}: --vary says it")
    settings = [
        dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())
    ]
    configs = [resolve(file, {**fixed, **setting}) for setting in settings]
    numbers = [configs[0].seed + i for i in range(seeds)]
    folders = [_folder(setting) for setting in settings]
    runs = []
    for index, (setting, config, folder) in enumerate(zip(settings, configs, folders, strict=True)):
        if len(folder) > _LONGEST or folder in folders[:index]:
            folder = f"setting{index}"
        for seed in numbers:
            name = f"{folder}{',' * bool(folder)}seed={seed}"
            chosen = {**fixed, **setting, "seed": str(seed), "workdir": f"{out}/{name}"}
            command = [sys.executable, "-m", "spidr_jax.main", *config_file.as_flags(file, chosen)]
            runs.append(PlannedRun(name, setting, seed, config.steps, command))
    kept = config_lib.flatten(config_lib.to_json(configs[0]))
    for field in ("workdir", *vary):
        del kept[field]
    return Study(kept, dict(vary), numbers, runs)


def resolve(file: str, values: Mapping[str, str]) -> Config:
    """The checked config that flags with these values give.

    Raises:
        ValueError: with one line that names field, value and what is allowed.
        OSError: a file that the config names is missing.
    """
    config = config_lib.build(Config, config_file.read(file, values))
    check_manifest(config)
    parse_sets(config.evaluation)
    return config


def read_fields(texts: Sequence[str], option: str) -> dict[str, str]:
    """`config_file.parse_fields`, of fields that are the user's to set.

    Raises:
        ValueError: as it does, or a field is the study's own.
    """
    found = config_file.parse_fields(texts, option)
    for field in ("workdir", "seed") if option == "--vary" else ("workdir",):
        if field in found:
            raise ValueError(f"{option} {field}={found[field]}: {_OWN[field]}")
    return found


def split(text: str) -> list[str]:
    """Split values at commas; one in brackets or quotes belongs to its value.

    Raises:
        ValueError: a bracket or a quote is not closed, or a value is empty.
    """
    values: list[str] = []
    for part in text.split(","):
        if values and not _is_whole(values[-1]):
            values[-1] += f",{part}"
        else:
            values.append(part)
    if not (all(values) and _is_whole(values[-1])):
        raise ValueError(f"{text!r}: allowed are values with commas between, as 0.9,0.99")
    return [value[1:-1] if value[0] in "'\"" else value for value in values]


def _is_whole(value: str) -> bool:
    """Whether quotes and brackets are closed."""
    if value.startswith(("'", '"')):
        return len(value) > 1 and value[-1] == value[0]
    return sum(map(value.count, "([{")) == sum(map(value.count, ")]}"))


def _folder(setting: Mapping[str, str]) -> str:
    label = ",".join(f"{field}={value}" for field, value in setting.items())
    return re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", label)
