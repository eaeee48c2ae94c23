"""The run's numbers on disk: one JSON object a line in metrics.jsonl."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spidr_jax.eval.metrics import Key, key_text


class MetricsWriter:
    """Writes lines, each at once, no step twice, none beyond the step that a run starts from.

    What a full disk does not take is kept and written with the next line.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Continue the file after `step` finished steps; a line cut by a crash is dropped."""
        kept = [line for line in read(path) if line["step"] <= step]
        rewritten = path.with_suffix(".tmp")
        rewritten.write_bytes(b"".join(map(_format, kept)))
        rewritten.replace(path)
        self._last = kept[-1] if kept else {"step": -1}
        self._tail = _format(self._last) if kept else b""  # the last line, and what waits before it
        self._offset = path.stat().st_size - len(self._tail)  # where it belongs
        self._written = True
        self._file = path.open("r+b", buffering=0)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line after `step` finished steps, or add to the line if the last is of it.

        Raises:
            OSError: the file cannot be written; the line is kept.
        """
        if self._last["step"] == step:
            values = {**self._last, **values}
            self._tail = self._tail[: -len(_format(self._last))]
        elif self._written:
            self._offset += len(self._tail)
            self._tail = b""
        self._last = {"step": step, **values}
        self._tail += _format(self._last)
        self._write_tail()

    def _write_tail(self) -> None:
        self._written = False
        self._file.seek(self._offset)
        left = memoryview(self._tail)
        while left:
            left = left[self._file.write(left) :]
        self._file.truncate()  # a line may have become shorter
        self._written = True

    def has(self, step: int, name: str) -> bool:
        """Whether the last line is of `step` and holds a value of that name."""
        return self._last["step"] == step and name in self._last

    def close(self) -> None:
        """Write what is still kept, and close the file.

        Raises:
            OSError: it cannot be written.
        """
        with self._file:
            if not self._written:
                self._write_tail()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without one that a crash cut."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "step" in line:
            lines.append(line)
    return lines


def flatten(values: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """A step's host metrics as a line holds them: `loss_per_codebook` becomes `loss/5`, ..."""
    flat = {}
    for name, value in values.items():
        if not name.endswith("_per_codebook"):
            flat[name] = value.item() if hasattr(value, "item") else value
            continue
        short = name.removesuffix("_per_codebook")
        for layer, of_layer in zip(layers, value, strict=True):
            flat[key_text(Key("", layer, short))] = of_layer.item()
    return flat


def _format(line: dict[str, Any]) -> bytes:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(finite, ensure_ascii=True).encode() + b"\n"
