"""Plan of a study: one config, under several values of some fields, with several seeds."""

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spidr_jax.eval.metrics import Key, key_text
from spidr_jax.inference.datasets import parse_sets
from spidr_jax.method.config import Config
from spidr_jax.pretraining import check_manifest
from spidr_jax.train import config as config_lib
from spidr_jax.train import config_file

_OWN = {"workdir": "--out says it", "seed": "--seeds says it"}
_LONGEST = 100  # characters of a folder's name
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


class PlannedRun(NamedTuple):
    """One run of a study.

    Attributes:
        name: name of its folder in the study's.
        setting: the varied fields' values, as written.
        seed: value of `config.seed`.
        steps: number of steps after which it ends.
        measured: metrics that its last line holds.
        command: command that runs it.
    """

    name: str
    setting: dict[str, str]
    seed: int
    steps: int
    measured: list[str]
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
    base = resolve(file, {**fixed, **{field: values[0] for field, values in vary.items()}})
    numbers = [base.seed + i for i in range(seeds)]
    settings = _settings(file, vary, fixed)
    folders = [_folder(setting) for setting, _ in settings]
    runs = []
    for index, ((setting, config), folder) in enumerate(zip(settings, folders, strict=True)):
        if len(folder) > _LONGEST or folder in folders[:index]:
            folder = f"setting{index}"
        for seed in numbers:
            name = f"{folder}{',' * bool(folder)}seed={seed}"
            chosen = {**fixed, **setting, "seed": str(seed), "workdir": f"{out}/{name}"}
            command = [sys.executable, "-m", "spidr_jax.main", *config_file.as_flags(file, chosen)]
            runs.append(PlannedRun(name, setting, seed, config.steps, _measured(config), command))
    kept = config_lib.flatten(config_lib.to_json(base))
    for field in ("workdir", *vary):
        del kept[field]
    return Study(kept, dict(vary), numbers, runs)


def _settings(
    file: str, vary: Mapping[str, list[str]], fixed: Mapping[str, str]
) -> list[tuple[dict[str, str], Config]]:
    """Every combination of the values, with its config."""
    found: list[tuple[dict[str, str], Config]] = []
    for values in itertools.product(*vary.values()):
        setting = dict(zip(vary, values, strict=True))
        config = resolve(file, {**fixed, **setting})
        for other, known in found:
            if known == config:
                raise ValueError(f"--vary: {_label(setting)} is the same as {_label(other)}")
        found.append((setting, config))
    return found


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
    parts, depth, least, quote = [""], 0, 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += _BRACKETS.get(character, 0)
            least = min(least, depth)
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if depth or least or quote or not all(parts):
        raise ValueError(f"{text!r}: allowed are values with commas between, as 0.9,0.99")
    return [part[1:-1] if part[0] == part[-1] and part[0] in "'\"" else part for part in parts]


def _label(setting: Mapping[str, str]) -> str:
    return ", ".join(f"{field}={value}" for field, value in setting.items())


def _folder(setting: Mapping[str, str]) -> str:
    return re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", _label(setting).replace(", ", ","))


def _measured(config: Config) -> list[str]:
    """A metric of each evaluation set."""
    layer = config.model.encoder_num_layers
    return [
        key_text(Key(each.name, layer, "pnmi" if each.alignment else "abx_across"))
        for each in parse_sets(config.evaluation)
    ]
