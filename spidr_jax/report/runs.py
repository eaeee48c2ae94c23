"""What lies in a run's folder: metrics, config, versions and evaluations."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spidr_jax import metrics

Point = tuple[float, float | None]  # None: a value that was not finite


class Measured(NamedTuple):
    """One number of an evaluation file; `layer` is None for what belongs to no layer."""

    what: str
    layer: int | None
    value: float


class Run(NamedTuple):
    """A run as far as its folder tells of it."""

    name: str
    folder: Path
    lines: list[dict[str, Any]]  # of metrics.jsonl, in the order of steps
    config: dict[str, Any]
    saved_step: int | None  # of the newest checkpoint
    saved: dict[str, Any]  # what lies beside the newest checkpoint's state, such as versions
    evaluations: dict[str, list[Measured]]  # by file name

    def series(self, name: str) -> list[Point]:
        """The values of a metric by step, where lines hold it."""
        return [(line["step"], _number(line[name])) for line in self.lines if name in line]

    def last(self, name: str) -> tuple[int, float] | None:
        """Step and value of the last finite value of a metric."""
        for line in reversed(self.lines):
            value = _number(line.get(name))
            if value is not None:
                return line["step"], value
        return None

    def names(self) -> set[str]:
        """The metrics of which there is a finite value."""
        return {n for line in self.lines for n, v in line.items() if _number(v) is not None}

    def get(self, field: str) -> Any:
        """A field of the config such as "model.codebook_size", None where it is not known."""
        value: Any = self.config
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < float("inf") else None  # NaN compares false


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs; those whose folders have the same name are told apart by their paths.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of a run in it.
        ValueError: a file is damaged; the message names it.
    """
    runs = [_read(folder) for folder in folders]
    names = [run.name for run in runs]
    return [
        run._replace(name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs
    ]


def _read(folder: Path) -> Run:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    files = [folder / name for name in ("metrics.jsonl", "config.json", "checkpoints")]
    if not any(path.exists() for path in files):
        raise FileNotFoundError(
            f"{folder}: is no run's folder: it has no metrics.jsonl, config.json or checkpoints"
        )
    lines = sorted(metrics.read(files[0]), key=lambda line: line["step"])
    saved_step, saved, config = _newest(files[2])
    if files[1].exists():
        config = _read_json(files[1])
    name = folder.absolute().name
    found = {path.name: path for path in sorted(folder.glob("evaluate*.json"))}
    evaluations = {file: list(_walk(_read_json(path))) for file, path in found.items()}
    return Run(name, folder, lines, config, saved_step, saved, evaluations)


def _newest(checkpoints: Path) -> tuple[int | None, dict[str, Any], dict[str, Any]]:
    """Step, data position with versions, and config of the newest checkpoint."""
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
    if not steps:
        return None, {}, {}
    folder = checkpoints / str(max(steps))
    files = [folder / name / "metadata" for name in ("data", "config")]
    saved, config = (_read_json(path) if path.exists() else {} for path in files)
    return max(steps), saved, config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: {error}") from None


def _walk(node: Any, path: tuple[str, ...] = (), layer: int | None = None) -> Iterator[Measured]:
    """The numbers of an evaluation file, whatever its nesting.

    A layer is a key that is a number (or ends in `layer_` and one), or the entry `layer` of an
    object; the texts beside such an entry say what was measured.
    """
    if isinstance(node, dict):
        if isinstance(node.get("layer"), int | str):
            layer = _layer(str(node["layer"]))
            path += tuple(value for value in node.values() if isinstance(value, str))
        for key, value in node.items():
            numbered = _layer(key)
            if numbered is not None:
                yield from _walk(value, path, numbered)
            elif key not in ("layer", "step"):
                yield from _walk(value, (*path, key), layer)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value, path, layer)
    elif (number := _number(node)) is not None and path:
        yield Measured(" ".join(path), layer, number)


def _layer(key: str) -> int | None:
    digits = key.removeprefix("layer").lstrip("_ ")
    return int(digits) if digits.isdigit() else None
