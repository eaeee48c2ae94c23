"""What lies in a run's folder: metrics, config, versions and evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spidr_jax.train import metrics

Point = tuple[float, float | None]  # None: a value that was not finite


class Measured(NamedTuple):
    """One number of an evaluation: of which layer ("MFCC" of none), output and measure."""

    layer: int | str
    kind: str
    name: str
    value: float


class Evaluation(NamedTuple):
    """What `spidr_jax.evaluate` has measured of a checkpoint after `step` steps."""

    step: int | None
    measured: list[Measured]


class Run(NamedTuple):
    """A run as far as its folder tells of it."""

    name: str
    folder: Path
    lines: list[dict[str, Any]]  # of metrics.jsonl, in the order of steps
    names: set[str]  # of the metrics of which there is a finite value
    config: dict[str, Any]
    saved_step: int | None  # of the newest checkpoint
    saved: dict[str, Any]  # what lies beside the newest checkpoint's state, such as versions
    evaluations: dict[str, Evaluation]  # by file name

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
    names = {n for line in lines for n, value in line.items() if _number(value) is not None}
    saved_step, saved, config = _newest(files[2])
    if files[1].exists():
        config = _read_json(files[1])
    name = folder.absolute().name
    evaluations = {path.name: _evaluation(path) for path in folder.glob("evaluate*.json")}
    return Run(name, folder, lines, names, config, saved_step, saved, evaluations)


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


def _evaluation(path: Path) -> Evaluation:
    """The numbers of a file of `spidr_jax.evaluate`; none of one that is something else."""
    content = _read_json(path)
    content = content if isinstance(content, dict) else {}
    results = content.get("results")
    results = results if isinstance(results, list) else []
    rows = [row for row in results if isinstance(row, dict)]
    return Evaluation(
        content.get("step"),
        [
            Measured(row["layer"], str(row.get("kind", "")), name, value)
            for row in rows
            if isinstance(row.get("layer"), int | str)
            for name, entry in row.items()
            if name != "layer" and (value := _number(entry)) is not None
        ],
    )
