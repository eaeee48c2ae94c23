"""metrics.jsonl: what a resumed run keeps, drops and adds to."""

import json
import resource
from pathlib import Path

import pytest

from spidr_jax.train.metrics import MetricsWriter, read
from spidr_jax.train.sinks import Logs


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


def test_what_lies_beyond_the_step_of_a_resumed_run_counts_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4)
    before = path.read_bytes()
    MetricsWriter(path, 2).close()
    assert [line["step"] for line in read(path)] == [1, 2]
    write(path, 1)  # as config.resume_step may ask for
    write(path, 1, 3)
    assert read(path) == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 1.5}]
    assert path.read_bytes().startswith(before), "the file only grows"


@pytest.mark.parametrize("damage", ['{"step": 3, "lo', "5", "[1]", '{"loss": 1}', '{"step": "x"}'])
def test_a_line_that_is_none_is_left_out_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    path.write_text(path.read_text() + damage)  # killed in the middle: no end of the line
    write(path, 2, 6)
    assert [line["step"] for line in read(path)] == [1, 2, 6]
    assert "left out, as no metrics: lines 3" in caplog.text


def test_a_second_write_of_a_step_adds_to_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    writer = MetricsWriter(path, 2)
    assert writer.has(2, "loss")
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


def test_a_full_disk_costs_lines_and_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1)
    logs = Logs(tmp_path, 1, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        for step in (2, 3):
            logs.write(step, {"loss": step / 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().out.count("warning: MetricsWriter: step") == 2
    logs.write(4, {"loss": 2.0})
    logs.close()
    assert read(path) == [{"step": 1, "loss": 0.5}, {"step": 4, "loss": 2.0}]
