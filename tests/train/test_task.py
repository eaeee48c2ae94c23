"""A run of a task that is no speech model: logs, validation, kill -9, two processes, refusals."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import group
import jax
import linear
import numpy as np
import pytest

from spidr_jax.train import command, loop, metrics
from spidr_jax.train.config import CheckpointConfig, build

CONFIG = """
import linear
from spidr_jax.train.config import defaults

def get_config():
    config = defaults(linear.Config(steps=30, log_every=1, validation_every=10))
    config.checkpoint.every = 5
    return config
"""
TIMINGS = ("batches_per_second", "data_wait")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path / "config.py"


def start(file: Path, workdir: Path, *flags: str) -> list[str]:
    entry = [sys.executable, linear.__file__, f"--config={file}", f"--config.workdir={workdir}"]
    return [*entry, *flags]


def lines(folder: Path) -> list[dict[str, Any]]:
    found = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in found]


def weights(folder: Path) -> np.ndarray:
    config = build(linear.Config, {"workdir": str(folder), "steps": 30})
    state = loop.build_state(loop.open_run(linear.Regression(config), config))
    assert state.step == 30
    return np.asarray(jax.device_get(state.params))


def test_it_trains_logs_and_validates(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(start(file, tmp_path / "run"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 30/30  loss 0.0" in done.stdout
    assert "validation dev after step 30: loss 0.0" in done.stdout
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == list(range(31))
    assert [line["step"] for line in found if "dev/loss" in line] == [0, 10, 20, 30]
    np.testing.assert_allclose(weights(tmp_path / "run"), [1, -2, 3], atol=0.1)


def test_killed_by_9_and_resumed_it_equals_an_uninterrupted_run(file: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(start(file, whole), check=True)
    slow = "--config.steps=1000000"
    with subprocess.Popen(start(file, killed, slow), stdout=subprocess.PIPE) as process:
        while not (killed / "checkpoints" / "10").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    reached = max(int(x.name) for x in (killed / "checkpoints").iterdir() if x.name.isdigit())
    end = f"--config.steps={max(30, reached + 1)}"
    subprocess.run(start(file, killed, end), check=True)
    assert lines(killed)[:30] == lines(whole)[:30]


def test_two_processes_give_what_one_gives(file: Path, tmp_path: Path) -> None:
    subprocess.run(start(file, tmp_path / "one"), check=True)
    command_line = start(file, tmp_path / "two")
    with group.Group(tmp_path / "outputs", command_line[1:], 2) as processes:
        assert processes.statuses() == [0, 0], processes.all_outputs()
    np.testing.assert_allclose(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-5)
    assert lines(tmp_path / "two")[-1]["dev/loss"] == pytest.approx(
        lines(tmp_path / "one")[-1]["dev/loss"], rel=1e-4
    )


def test_the_config_of_the_task_is_checked_and_its_data_are_known(tmp_path: Path) -> None:
    config = linear.Config(workdir=str(tmp_path), steps=3, checkpoint=CheckpointConfig(every=3))
    assert command.train(linear.Regression(config), config, lambda folder: None) == 0
    for change, said in (
        ({"rate": 0.2}, r"config\.rate was 0\.1 and is 0\.2"),
        ({"seed": 1, "allow_changes": "seed"}, "the data: files"),
        (
            {"init_from": str(tmp_path), "workdir": str(tmp_path / "b")},
            "starts from no other weights",
        ),
        ({"checkpoint": {"best": "dev/x"}}, "checkpoint.best = 'dev/x': allowed is dev/loss"),
    ):
        other = build(linear.Config, {"workdir": str(tmp_path), "steps": 3} | change)
        with pytest.raises(ValueError, match=said):
            loop.build_state(loop.open_run(linear.Regression(other), other))
