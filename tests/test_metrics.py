"""metrics.jsonl: what a resumed run keeps, drops and adds to."""

import json
from pathlib import Path

from spidr_jax.metrics import MetricsWriter, read


def write(path: Path, start: int, *steps: int) -> None:
    writer = MetricsWriter(path, start)
    for step in steps:
        writer.write(step, {"loss": step / 2})
    writer.close()


def test_a_resumed_run_drops_what_lies_beyond_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4)
    write(path, 2, 3, 4, 5)
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    path.write_text(path.read_text() + '{"step": 3, "lo')
    write(path, 5, 6)
    assert [line["step"] for line in read(path)] == [1, 2, 6]


def test_a_second_write_of_a_step_adds_to_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    writer = MetricsWriter(path, 2)
    assert not writer.has(2, "pnmi")
    writer.write(2, {"pnmi": 0.5, "loss": 7.0})
    assert writer.has(2, "pnmi")
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert read(path)[1:] == [{"step": 2, "loss": 7.0, "pnmi": 0.5}, {"step": 3, "loss": 1.0}]


def test_lines_are_on_disk_at_once_and_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, 0)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "text": "ü"})
    text = path.read_text()
    writer.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(text, parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "grad_norm": None, "text": "ü"}
