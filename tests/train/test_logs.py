"""TensorBoard and Weights & Biases beside metrics.jsonl: what a killed and resumed run leaves."""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from spidr_jax.train import metrics
from spidr_jax.train import sinks as logs
from spidr_jax.train.sinks import Logs

# Logs steps 1 to 5, the third in two goes, and dies of kill -9 as it is about to log the sixth.
KILLED = """
import os, signal, sys
from pathlib import Path
from spidr_jax.train.sinks import Logs
writer = Logs(Path(sys.argv[1]), 0, {"seed": 1}, tensorboard="t" in sys.argv[2], wandb=sys.argv[3])
writer.write(0, {"dev/loss": 7.0})
for step in range(1, 6):
    writer.write(step, {"loss": step / 2})
    if step == 3:
        writer.write(step, {"dev/loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill(folder: Path, tensorboard: bool = False, wandb: str = "") -> None:
    flag = "t" if tensorboard else "-"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), flag, wandb],
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL


def resume(folder: Path, **options: Any) -> None:
    """Go on after step 3 and end after step 6; what is beyond 3 has changed."""
    writer = Logs(folder, 3, {"seed": 1}, **options)
    assert writer.has(3, "dev/loss")
    for step in (4, 5, 6):
        writer.write(step, {"loss": step / 2 + 10})
    writer.write(6, {"dev/loss": 0.5})
    writer.close()


RESUMED = [
    {"step": 0, "dev/loss": 7.0},
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 1.0},
    {"step": 3, "loss": 1.5, "dev/loss": 1.0},
    {"step": 4, "loss": 12.0},
    {"step": 5, "loss": 12.5},
    {"step": 6, "loss": 13.0, "dev/loss": 0.5},
]


def test_metrics_hold_no_step_twice_after_a_kill(tmp_path: Path) -> None:
    kill(tmp_path)
    assert metrics.read(tmp_path / "metrics.jsonl")[-1] == {"step": 5, "loss": 2.5}
    resume(tmp_path)
    assert metrics.read(tmp_path / "metrics.jsonl") == RESUMED
    assert not (tmp_path / "tensorboard").exists()


def test_a_reader_who_has_gone_ends_no_run() -> None:
    code = "from spidr_jax.train.distributed import tell\nfor _ in range(3): tell('step')"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=pipe, stderr=-1, check=True, timeout=120
        )
    assert done.stderr == b""


# --- TensorBoard


def events(folder: Path) -> list[Event]:
    """All events of a folder, file after file, by the format: length, its CRC, data, its CRC."""
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            found.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += 12 + length + 4
        assert place == len(data)
    return found


def shown(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows: a START event drops the values from its step on that came before."""
    values: list[tuple[int, str, float]] = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            values = [value for value in values if value[0] < event.step]
        values += [(event.step, each.tag, each.simple_value) for each in event.summary.value]
    return values


def flat(lines: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return [(each["step"], name, each[name]) for each in lines for name in each if name != "step"]


def test_tensorboard_shows_what_metrics_hold_after_a_kill(tmp_path: Path) -> None:
    kill(tmp_path, tensorboard=True)
    assert shown(tmp_path / "tensorboard") == flat(metrics.read(tmp_path / "metrics.jsonl"))
    resume(tmp_path, tensorboard=True)
    written = [(e.step, v.tag) for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert Counter(written)[5, "loss"] == 2  # files are not rewritten: it is START that counts
    assert shown(tmp_path / "tensorboard") == flat(RESUMED)


def test_tensorboard_gets_no_value_that_is_not_finite(tmp_path: Path) -> None:
    writer = Logs(tmp_path, 0, {}, tensorboard=True)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 2, "none": None})
    writer.close()
    assert shown(tmp_path / "tensorboard") == [(1, "skipped", 2.0)]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path: Path) -> None:
    writer = Logs(tmp_path, 0, {}, tensorboard=True, writes=False)
    writer.write(1, {"loss": 1.0})
    assert not writer.has(1, "loss")
    writer.close()
    assert list(tmp_path.iterdir()) == []


# --- Weights & Biases


@pytest.mark.parametrize(("field", "value"), [("tensorboard", True), ("wandb", "speech")])
def test_a_missing_package_names_the_extra(
    field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.check_installed(tensorboard=True, wandb="")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wanted = {"tensorboard": False, "wandb": ""} | {field: value}
    message = rf"config\.{field} = {value!r} needs .*: pip install 'spidr_jax\[{field}\]'"
    with pytest.raises(ImportError, match=message):
        logs.check_installed(**wanted)
    logs.check_installed(tensorboard=False, wandb="")


class FakeWandb:
    """What of wandb is used, with rows as W&B keeps them: by step, none before the last one's."""

    Error = ValueError

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.rows: dict[int, dict[str, Any]] = {}
        self.finished = 0

    def init(self, **options: Any) -> Any:
        if options["project"] == "forbidden":
            raise self.Error("no access")
        self.inits.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values: dict[str, Any], step: int) -> None:
        if not self.rows or step >= max(self.rows):
            self.rows.setdefault(step, {}).update(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


def test_all_starts_of_a_run_are_one_run_of_wandb(wandb: FakeWandb, tmp_path: Path) -> None:
    for number, project in enumerate(("speech", "speech", "other")):
        writer = Logs(tmp_path, number, {"seed": 1}, wandb=project)
        writer.write(number + 1, {"loss": number})
        writer.write(number + 1, {"dev/loss": number})
        writer.close()
    first, second, other = wandb.inits
    assert first["id"] == second["id"] != other["id"]
    assert (first["project"], first["config"], first["resume"]) == ("speech", {"seed": 1}, "allow")
    assert wandb.rows == {n + 1: {"loss": n, "dev/loss": n} for n in range(3)}
    assert wandb.finished == 3


def test_what_wandb_raises_ends_no_run(
    wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Logs(tmp_path, 0, {}, wandb="speech")
    wandb.rows = None  # type: ignore[assignment]
    writer.write(1, {"loss": 1.0})
    assert "warning: WandB: step 1 was not written: " in capsys.readouterr().out
    assert writer.has(1, "loss")
    writer.close()


def test_what_wandb_refuses_is_told_in_one_line(wandb: FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.wandb = 'forbidden': no access"):
        Logs(tmp_path, 0, {}, wandb="forbidden")


def test_wandb_itself_takes_what_we_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kill(tmp_path, wandb="speech")
    resume(tmp_path, wandb="speech")
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
    names = {file.stem for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{json.loads((tmp_path / 'wandb.json').read_text())['id']}"}


def test_a_full_disk_under_the_terminals_file_ends_nothing() -> None:
    script = "from spidr_jax.train.distributed import tell; tell('a'); tell('b')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, check=False)
    assert done.returncode == 0
