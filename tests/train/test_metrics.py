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
    writer.write(2, {"pnmi": 0.5, "loss": 7.0123456789})
    writer.write(2, {"loss": 7.0})
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


def test_what_a_full_disk_does_not_take_is_written_later(
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
        logs.write(3, {"dev/loss": 7.0})
        cut = path.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cut.endswith(b'{"step": 2'), "what fitted of the line"
    assert [line["step"] for line in read(path)] == [1]
    assert capsys.readouterr().out.count("warning: MetricsWriter: step") == 3
    logs.write(4, {"loss": 2.0})
    logs.close()
    assert read(path)[1:] == [
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 1.5, "dev/loss": 7.0},
        {"step": 4, "loss": 2.0},
    ]


def test_what_is_kept_at_the_end_is_written_or_said(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (5, 1000):
        writer = MetricsWriter(path, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                writer.write(1, {"loss": 0.5})
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            if room == 5:
                with pytest.raises(OSError, match="File too large"):
                    writer.close()
            else:
                writer.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(path) == [{"step": 1, "loss": 0.5}]
