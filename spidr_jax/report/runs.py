"""Contents of a run's folder: metrics, config, versions and evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spidr_jax.eval.metrics import METRICS, Key, key_text, parse_key
from spidr_jax.train import config as config_lib
from spidr_jax.train import metrics

Point = tuple[float, float | None]  # None: a value that was not finite


class Run(NamedTuple):
    """A run as its folder records it.

    Attributes:
        name: name of the folder.
        folder: its path.
        lines: those of metrics.jsonl, in the order of steps.
        keys: the metrics that have a finite value, by set, name (first the registered) and layer.
        config: by names such as "model.codebook_size"; empty where there is none.
        saved_step: finished steps of the newest checkpoint.
        versions: versions of the software that wrote it, as "versions.jax".
        evaluated: the rows of the files of `spidr_jax.evaluate`, with file and step.
    """

    name: str
    folder: Path
    lines: list[dict[str, Any]]
    keys: list[Key]
    config: dict[str, Any]
    saved_step: int | None
    versions: dict[str, Any]
    evaluated: list[dict[str, Any]]

    def series(self, name: str) -> list[Point]:
        """The values of a metric by step, where lines hold it."""
        return [(line["step"], _finite(line[name])) for line in self.lines if name in line]

    def last(self, name: str) -> float | None:
        """The last finite value of a metric."""
        return next((y for _, y in reversed(self.series(name)) if y is not None), None)

    def layers(self, dataset: str, name: str) -> dict[int | str, float]:
        """The last finite values of a set's metric ("": of training), by layer."""
        keys = [key for key in self.keys if (key.set, key.name) == (dataset, name)]
        found = {key.layer: self.last(key_text(key)) for key in keys}
        return {layer: y for layer, y in found.items() if layer is not None and y is not None}

    def of_mfcc(self, name: str) -> float | None:
        """A metric of MFCC by the evaluation files: theirs, or that of units of their clusters."""
        rows = [row for row in self.evaluated if row.get("layer") == "MFCC"]
        kinds = {str(row.get("kind")): row.get(name) for row in rows}
        return next((y for kind in ("features", "kmeans") if (y := _finite(kinds.get(kind)))), None)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < float("inf") else None  # NaN compares false


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs; those whose folders have the same name are named by their paths.

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
    lines = metrics.read(files[0])
    names = {name for line in lines for name, y in line.items() if _finite(y) is not None}
    keys = sorted(map(parse_key, names - {"step"}), key=_order)
    saved_step, versions, config = _newest(files[2])
    if files[1].exists():
        config = config_lib.flatten(_read_json(files[1]))
    evaluated = [row for path in sorted(folder.glob("evaluate*.json")) for row in _rows(path)]
    return Run(folder.absolute().name, folder, lines, keys, config, saved_step, versions, evaluated)


def _order(key: Key) -> tuple[str, int, str, int]:
    place = list(METRICS).index(key.name) if key.name in METRICS else len(METRICS)
    return key.set, place, key.name, key.layer if isinstance(key.layer, int) else -1


def _newest(checkpoints: Path) -> tuple[int | None, dict[str, Any], dict[str, Any]]:
    """Step, versions and config of the newest checkpoint."""
    step = max(
        (int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()), default=None
    )
    files = [checkpoints / str(step) / name / "metadata" for name in ("data", "config")]
    position, config = (_read_json(path) if path.exists() else {} for path in files)
    versions = {"versions": position.get("versions") or {}}
    return step, config_lib.flatten(versions), config_lib.flatten(config)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is damaged: {error}") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `spidr_jax.evaluate`; none of one that is something else."""
    content = _read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    rows = results if isinstance(results, list) else []
    about = {"file": path.name, "step": content.get("step")} if rows else {}
    return [about | row for row in rows if isinstance(row, dict)]
