"""Runs of several real processes on the CPU: equal results, and what a fault in one does to all."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from group import Group
from ml_collections import ConfigDict

from spidr_jax.train import distributed, metrics
from spidr_jax.weights import orbax as orbax_files

ENDLESS = 1_000_000

# ---- how a process joins

TRIO = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
EXPLICIT = {
    "coordinator_address": "a:1",
    "num_processes": 4,
    "process_id": 3,
    "cluster_detection_method": "deactivate",
}


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({}, None),
        (TRIO, EXPLICIT),
        (TRIO | STEP, EXPLICIT),
        (TRIO | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, EXPLICIT | {"local_device_ids": [0, 1]}),
        (STEP, {"cluster_detection_method": "slurm"}),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, None),  # no srun
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell in an allocation of 16 tasks
        ({"TPU_ML_PLATFORM": "JAX"}, {}),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_how_a_process_joins_follows_from_the_environment(
    environ: dict[str, str], arguments: dict[str, Any] | None
) -> None:
    assert distributed.choose(environ) == arguments


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID not set: allowed is all or none"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID = 4: allowed is 0 to 3"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID = '-1': allowed is an integer from 0"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES = 'two': allowed is an integer"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES = '0': allowed is an integer from 1"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS = 'host': allowed is host:"),
        ({"JAX_LOCAL_DEVICE_IDS": "all"}, "JAX_LOCAL_DEVICE_IDS = 'all': allowed is numbers"),
    ],
)
def test_a_wrong_environment_is_named(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        distributed.choose(TRIO | changed)
    assert "\n" not in str(caught.value)


# ---- the same run on any number of processes and devices


def configure(manifest: Path, folder: Path, **changes: Any) -> ConfigDict:
    config = tiny.config(manifest, folder / "run")
    config.model.update(
        extractor_conv_layer_config=((16, 80, 40), (16, 8, 8)), encoder_pos_conv_depth=1
    )
    config.data.update(planned_devices=8, max_batch_samples=14_000)  # 8 rows
    config.log_every = 1
    config.update(changes)
    return config


def state_at(config: ConfigDict, step: int) -> dict[str, np.ndarray]:
    saved = orbax_files.read(Path(config.workdir) / "checkpoints" / str(step), lambda name: True)
    leaves = jax.tree_util.tree_leaves_with_path(saved.state)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def assert_equal_runs(one: ConfigDict, other: ConfigDict, steps: list[int]) -> None:
    """Compare every tensor, and the batches by the losses of all steps."""
    for step in steps:
        first, second = state_at(one, step), state_at(other, step)
        assert first.keys() == second.keys()
        assert len(first) > 100
        for name, value in first.items():
            error, size = np.linalg.norm(second[name] - value), np.linalg.norm(value)
            assert error <= 1e-5 * size, f"step {step}, {name}: {error / size:.1e}"
    lines = [metrics.read(Path(c.workdir) / "metrics.jsonl") for c in (one, other)]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"step", "bad_rows", "dev/masked_frames"}:
            assert b[name] == a[name]
        for name in a.keys() & {"loss", "dev/loss", "dev/target_ppl/2"}:
            assert b[name] == pytest.approx(a[name], rel=1e-6)
        # shares of frames and of triples: a near tie may fall to the other side
        for name in a.keys() & {"tones/phone_purity/2", "tones/abx_across/2"}:
            assert b[name] == pytest.approx(a[name], abs=1e-2)


@pytest.fixture(scope="module")
def straight(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """Eight steps of one process on one device, every second one saved, validated and evaluated."""
    config = configure(manifest, tmp_path_factory.mktemp("straight"))
    config.update(steps=8, validation=f"dev:{manifest}", validation_every=2)
    alignment, items = tiny.write_labels(manifest)
    config.update(evaluation=f"tones:{manifest}:{alignment}:{items}", evaluation_every=2)
    config.checkpoint.update(every=2, keep=9)
    tiny.run_to_end(config)
    return config


def continued(straight: ConfigDict, folder: Path, steps: int) -> ConfigDict:
    return tiny.changed(straight, workdir=str(folder / "run"), steps=steps)


@pytest.mark.slow
def test_any_processes_and_devices_go_on_and_equal_one(
    straight: ConfigDict, tmp_path: Path
) -> None:
    """Eight devices of one process, then two processes of two, then four of one, then one."""
    for number, devices, steps in ((1, 8, 2), (2, 2, 4), (4, 1, 6)):
        config = continued(straight, tmp_path, steps)
        config.sharding.fsdp = number == 4
        with Group(tmp_path / str(steps), config, number, devices=devices) as group:
            assert group.statuses() == [0] * number, group.all_outputs()
            assert f"devices: {number * devices} x cpu, {number} process(es)" in group.output(0)
            for quiet in range(1, number):
                assert "step" not in re.sub(r"(?m)^[WIE]\d.*$", "", group.output(quiet))
    tiny.run_to_end(continued(straight, tmp_path, 8))
    assert_equal_runs(straight, continued(straight, tmp_path, 8), [2, 4, 6, 8])


# ---- faults


@pytest.mark.slow
def test_one_of_two_is_told_to_stop_and_later_hangs(manifest: Path, tmp_path: Path) -> None:
    config = configure(manifest, tmp_path, steps=ENDLESS, watchdog_seconds=15)
    config.checkpoint.every = ENDLESS
    lines = Path(config.workdir) / "metrics.jsonl"

    with Group(tmp_path / "term", config, 2) as group:
        group.wait_for("step       2/")
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.statuses() == [0, 0], group.all_outputs()
        stopped = int(re.findall(r"saving after this step, (\d+)", group.output(0))[0])
        assert f"stopped after step {stopped} of" in group.output(0)
    assert metrics.read(lines)[-1]["step"] == stopped

    with Group(tmp_path / "hang", config, 2) as group:
        group.wait_for(f"resumes after step {stopped}\n")
        group.wait_for(f"step {stopped + 2:>7}/")
        group.processes[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert group.processes[0].wait(240) == 1, group.all_outputs()
        assert time.monotonic() - began >= 14
        assert "Timeout (0:00:15)!" in group.output(0)
        assert re.search(r'File ".*loop.py", line \d+ in _loop', group.output(0))


ELSEWHERE = """
import runpy
import sys

from spidr_jax.train import distributed

distributed.start()
sys.argv += [] if distributed.is_first() else ["--config.workdir={folder}"]
runpy.run_module("spidr_jax.main", run_name="__main__", alter_sys=True)
"""


def test_processes_that_see_different_folders_are_refused(manifest: Path, tmp_path: Path) -> None:
    config = configure(manifest, tmp_path)
    tiny.write_run(Path(config.workdir), step=5)
    with Group(tmp_path / "out", config, 2, ELSEWHERE.format(folder=tmp_path / "local")) as group:
        assert 0 not in group.statuses(120)
        both = group.all_outputs()
    assert re.search(r"process \d of 2: error: .* must be one folder for all .* \[5, -1\]", both)


ENTRY = """
import runpy
import jax
from spidr_jax.data import audio

read_pcm, failed = audio.read_pcm, set()

def fail(row):
    if jax.process_index() == 1 and {condition}:
        failed.add(row.fileid)
        raise audio.AudioError(row.fileid + ": injected")
    return read_pcm(row)

audio.read_pcm = fail
runpy.run_module("spidr_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_too_much_bad_data_on_one_host_stops_all_after_the_same_step(
    manifest: Path, tmp_path: Path
) -> None:
    config = configure(manifest, tmp_path, steps=ENDLESS)
    config.data.max_bad_share = 0.0
    config.checkpoint.every = ENDLESS
    once = ENTRY.format(condition="not failed")
    with Group(tmp_path / "bad", config, 2, once) as group:
        assert group.statuses() == [0, 1], group.all_outputs()
        stopped = int(re.findall(r"saving after this step, (\d+)", group.output(0))[0])
        assert f"stopped after step {stopped} of" in group.output(0)
        assert "error: 1 of" in group.output(1)
        assert "injected" in group.output(1)
    lines = metrics.read(Path(config.workdir) / "metrics.jsonl")
    assert lines[-1]["step"] == stopped
    assert lines[-1]["bad_rows"] == 1, "the first process tells of the others' too"
    assert (Path(config.workdir) / "checkpoints" / str(stopped)).is_dir()


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others(manifest: Path, tmp_path: Path) -> None:
    config = configure(manifest, tmp_path, steps=ENDLESS)
    always = ENTRY.format(condition="audio.read_pcm is fail and jax.config.x is None")
    with Group(tmp_path / "error", config, 2, always) as group:
        began = time.monotonic()
        assert group.processes[1].wait(240) == 1, group.all_outputs()
        assert time.monotonic() - began < 240
        assert "process 1 of 2: ended by this" in group.output(1)
        assert "Traceback" in group.output(1)
        ended = time.monotonic()
        assert group.processes[0].wait(60) != 0
        assert time.monotonic() - ended < 60
        assert "another" in group.output(0)


STUCK = """
import runpy
import time
from spidr_jax.train.programs import Programs

get = Programs.get

def stuck(programs, shape, frozen):
    step = get(programs, shape, frozen)
    return lambda state, *rest: step(state, *rest) if int(state.step) < 2 else time.sleep(1000)

Programs.get = stuck
runpy.run_module("spidr_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_stuck_step_ends_the_process_with_its_stacks(manifest: Path, tmp_path: Path) -> None:
    config = configure(manifest, tmp_path, watchdog_seconds=3)
    with Group(tmp_path / "stuck", config, 1, STUCK) as group:
        assert group.statuses() == [1], group.all_outputs()
        assert "Timeout (0:00:03)!" in group.output(0)
        assert re.search(r'entry.py", line \d+ in <lambda>', group.output(0))
