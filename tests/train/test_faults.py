"""Faults that are really injected into a run: what it says, what it keeps, how it goes on."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from test_logs import shown

from spidr_jax.pretraining import Collapse
from spidr_jax.train import loop as train
from spidr_jax.train import metrics, placement
from spidr_jax.train import monitors as health
from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.weights import orbax as orbax_files

KILLS = 8


def last_state(config: ConfigDict) -> Any:
    return jax.device_get(train.build_state(tiny.open_run(config)))


def assert_same(first: Any, second: Any) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the batches of these steps, from 1, not finite."""
    put, count = placement.put_batch, iter(range(1, 1000))

    def put_batch(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
        if next(count) in steps:
            batch = batch | {"mean": np.full_like(batch["mean"], np.nan)}
        return put(batch, mesh)

    monkeypatch.setattr(placement, "put_batch", put_batch)


def test_a_batch_that_is_not_finite_changes_nothing_and_is_named(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config = tiny.config(manifest, tmp_path / "run")
    config.checkpoint.update(every=1, keep=9)
    poison(monkeypatch, 3)
    state, _ = tiny.run_to_end(config)
    output = capsys.readouterr().out
    rows = tiny.open_run(config).task.data.plan.batch(2).rows
    names = ", ".join(f"u{row:02d}" for row in rows)
    assert "step 3: loss or gradient not finite, update skipped (1 so far, 1 in a row)" in output
    assert names in output
    assert output.count("update skipped") == 1
    assert [line["skipped"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl")] == [
        0,
        0,
        1,
        1,
    ]
    folder = tmp_path / "run" / "checkpoints"
    before, after = (
        orbax_files.read(folder / str(step), lambda name: name != "skipped").state
        for step in (2, 3)
    )
    assert_same(before, after)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert (state.step, state.skipped) == (6, 1)


def test_many_in_a_row_stop_the_run_with_the_last_good_state_saved(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(manifest, tmp_path / "run")
    config.update(steps=9, max_skipped=3)
    config.checkpoint.update(every=2, keep=9)
    run = tiny.open_run(config)
    state = train.build_state(run)
    poison(monkeypatch, 3, 4, 5, 6, 7, 8, 9)
    with pytest.raises(health.NotFiniteError, match=r"3 steps in a row, up to step 5"):
        train.train(run, state)
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    newest = orbax_files.find(folder)
    assert int(newest.name) == 6  # noticed a step late
    good, saved = (
        orbax_files.read(path, lambda name: name != "skipped").state
        for path in (folder / "2", newest)
    )
    assert_same(good, saved)
    assert last_state(config).skipped == int(newest.name) - 2
    assert np.isfinite(metrics.read(tmp_path / "run" / "metrics.jsonl")[0]["loss"])


def test_a_codebook_is_warned_of_once_each_time_that_it_collapses(capsys: Any) -> None:
    collapse = Collapse(codebook_size=256)
    for step, perplexity in ((1, 25.0), (2, 3.0), (3, 100.0), (4, 25.0)):
        collapse.check(step, {4: 90.0, 5: perplexity})
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"warning: step {step}: the codebook of layer 5 collapses: target perplexity 25.0 of 256"
        for step in (1, 4)
    ]


def test_a_disk_that_fills_in_a_save_is_warned_of_and_the_old_checkpoint_stays(
    manifest: Path, tmp_path: Path
) -> None:
    config = tiny.config(manifest, tmp_path / "run")
    config.steps = 3
    good, _ = tiny.run_to_end(config)
    config.steps = 6
    config.checkpoint.every = 1
    command = [sys.executable, "-m", "spidr_jax.main", *tiny.flags(config)]
    # No file may grow beyond 50 kB: what a full disk does to the larger ones of a save.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 50; exec "$@"', "-", *command],
        cwd=tiny.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "warning: checkpoint 4 was not written" in done.stdout
    assert "warning: checkpoint 5 was not written" in done.stdout
    assert "step 6/6" in done.stdout
    assert "error: the end of the run is not saved: the newest checkpoint is 3\n" in done.stderr
    assert_same(good, last_state(config))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]


def train_until_killed(config: dict[str, Any], seconds: float, in_save: bool) -> None:
    """Train in a process of its own that kills itself: some time from now or from a save on."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def kill(after: float) -> None:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()

    if in_save:
        save = Checkpoints.save

        def save_and_die(self: Checkpoints, *args: Any) -> None:
            kill(seconds)
            save(self, *args)

        Checkpoints.save = save_and_die  # type: ignore[method-assign]
    else:
        kill(seconds)
    run = tiny.open_run(ConfigDict(config))
    train.train(run, train.build_state(run))


@pytest.mark.slow
def test_kill_9_loses_nothing_but_what_came_after_the_last_save(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(manifest, tmp_path / "killed")
    config.steps = 400
    config.update(freeze_step=30, tensorboard=True)
    config.update(validation=f"dev:{manifest}", validation_every=3)
    config.checkpoint.update(every=1, keep=2)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["spidr_jax.train.loop"])
    folder, draw = tmp_path / "killed" / "checkpoints", random.Random(0)
    reached, ready = 0, 0.0
    for number in range(KILLS):
        in_save = number % 2 == 1
        seconds = draw.uniform(0, 0.15) if in_save else ready * draw.uniform(0.5, 1.5)
        child = processes.Process(
            target=train_until_killed, args=(config.to_dict(), seconds, in_save)
        )
        began = time.monotonic()
        child.start()
        child.join(timeout=300)
        if in_save:  # it had started up when it died
            ready = time.monotonic() - began
        assert child.exitcode == -signal.SIGKILL
        steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        assert max(steps, default=0) >= reached
        if steps:
            reached = max(steps)
            assert orbax_files.read(folder, lambda name: True).step == reached
    assert reached >= 1
    config.steps = max(reached + 2, 31)
    whole = tiny.config(manifest, tmp_path / "whole")
    whole.update(steps=config.steps, freeze_step=config.freeze_step)
    whole.update(validation=config.validation, validation_every=3)
    assert_same(tiny.run_to_end(whole)[0], tiny.run_to_end(config)[0])
    lines = [metrics.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert lines[0][-1]["loss"] == lines[1][-1]["loss"]
    assert len({line["step"] for line in lines[1]}) == len(lines[1])
    validated = [[line["dev/loss"] for line in each if "dev/loss" in line] for each in lines]
    assert validated[0] == validated[1]
    logged = [(line["step"], name) for line in lines[1] for name in line if name != "step"]
    assert [value[:2] for value in shown(tmp_path / "killed" / "tensorboard")] == logged
