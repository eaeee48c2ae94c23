"""The run's numbers on disk: one JSON object a line in metrics.jsonl, which only grows."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends lines, each at once; `read` merges those of a step."""

    def __init__(self, path: Path, step: int) -> None:
        """Continue the file after `step` finished steps; what lies beyond counts no longer."""
        self._last: dict[str, Any] = {"step": step}
        self._file = path.open("ab", buffering=0)
        self._cut = path.stat().st_size > 0  # by a crash, maybe: an empty line harms nobody
        lines = read(path)
        if lines and lines[-1]["step"] > step:
            self.write(step, {})
        self._last.update(*(line for line in lines if line["step"] == step))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line of values after `step` finished steps.

        Raises:
            OSError: the file does not take it.
        """
        earlier = self._last if self._last["step"] == step else {}
        self._last = {**earlier, "step": step, **values}
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"step": step, **finite}).encode() + b"\n"
        line = b"\n" * self._cut + line
        self._cut = True
        if self._file.write(line) < len(line):
            raise OSError("no room for the line")
        self._cut = False

    def has(self, step: int, name: str) -> bool:
        """Whether the last values are of `step`, and one of that name is among them."""
        return self._last["step"] == step and name in self._last

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The values of each step, in order, as those of an uninterrupted run.

    Where steps go back the run was resumed: what it had written beyond counts no longer. Of a
    value that a step has twice the last counts. A line that is none (a crash cut it) is left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    damaged = []
    texts = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        line = _parse(text)
        if line is None:
            damaged += [str(number)] if text else []
            continue
        while steps and next(reversed(steps)) > line["step"]:
            steps.popitem()
        steps.setdefault(line["step"], {}).update(line)
    if damaged:
        _log.warning("%s: left out, as no metrics: lines %s", path, ", ".join(damaged[:9]))
    return [line for line in steps.values() if len(line) > 1]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
