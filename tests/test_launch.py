"""The launchers: what they set is what the code reads, and they pass signals and statuses on.

SLURM, Kubernetes and Google Cloud are not here: small programs of their commands' names stand in.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from group import environment

from spidr_jax.train import distributed, metrics
from spidr_jax.train import loop as train

LAUNCH = tiny.REPOSITORY / "launch"
JOBSET = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def of_jobset() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The job of the JobSet, its container and the container's variables."""
    job = JOBSET["spec"]["replicatedJobs"][0]
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    return job, container, {entry["name"]: entry for entry in container["env"]}


def variables(text: str) -> set[str]:
    return set(re.findall(r"\b(JAX_\w+)=", text))


def test_the_launchers_set_what_the_code_reads() -> None:
    assert variables((LAUNCH / "local_multiprocess.sh").read_text()) == {
        *distributed.TRIO,
        distributed.DEVICES,
    }
    assert set(of_jobset()[2]) == set(distributed.TRIO)
    for name in ("slurm.sbatch", "tpu_vm.sh"):  # JAX asks SLURM and the TPU itself
        assert not variables((LAUNCH / name).read_text())
        assert "JAX_" not in (LAUNCH / name).read_text()


def test_the_jobset_is_of_one_piece() -> None:
    job, container, env = of_jobset()
    name, spec = JOBSET["metadata"]["name"], job["template"]["spec"]
    address = env["JAX_COORDINATOR_ADDRESS"]["value"]
    port = container["ports"][0]["containerPort"]
    assert address == f"{name}-{job['name']}-0-0.{name}:{port}"
    number = env["JAX_NUM_PROCESSES"]["value"]
    assert number == str(spec["parallelism"]) == str(spec["completions"])
    assert spec["completionMode"] == "Indexed"
    index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    given = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": number, "JAX_PROCESS_ID": "0"}
    assert distributed.choose(given)["num_processes"] == 2


# ---- with replacements for what is not here


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """An environment in which `python` sleeps till SIGTERM, and the cluster's commands note."""
    folder = tmp_path / "bin"
    folder.mkdir()
    texts = {
        # "python FLAGS... STATUS" ends at once with the status; "endless" waits for a signal
        "python": 'trap "echo saved >>$LOG; exit 0" TERM\ntrap "echo saved >>$LOG; exit 130" INT\n'
        'if [ "$1" = -c ]; then echo 4321; exit; fi\n'
        'if [ -n "$JAX_PROCESS_ID" ]; then echo "process $JAX_PROCESS_ID of $JAX_NUM_PROCESSES '
        'at $JAX_COORDINATOR_ADDRESS, devices $JAX_LOCAL_DEVICE_IDS" >>$LOG; fi\n'
        'echo "python $*" >>$LOG\n'
        '[ "${@: -1}" = endless ] || exit "${@: -1}"\nwhile :; do sleep 0.05; done',
        "srun": 'echo "srun $*" >>$LOG\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"',
        "scontrol": 'echo "scontrol $*" >>$LOG',
        "gcloud": 'printf "%s\\n" "$*" >>$LOG\nlast=${@: -1}\nbash -c "${last#--command=}"',
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "71", "SLURM_CPUS_PER_TASK": "3", "LOG": str(tmp_path / "log")}
    return os.environ | slurm | {"PATH": f"{folder}:{os.environ['PATH']}"}


def run_with_signal(
    command: list[str], env: dict[str, str], number: int | None, pythons: int = 1
) -> tuple[int, str]:
    """Send a signal once `python` runs; give the exit status and what the replacements noted."""
    log = Path(env["LOG"])
    with subprocess.Popen(command, env=env) as process:
        if number:
            while not log.exists() or len(re.findall("^python", log.read_text(), re.M)) < pythons:
                time.sleep(0.02)
            process.send_signal(number)
        status = process.wait(20)
    return status, log.read_text()


def test_slurm_saves_before_the_limit_and_queues_again(stand_ins: dict[str, str]) -> None:
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "--config=a b", "endless"]
    status, log = run_with_signal(command, stand_ins, signal.SIGUSR1)
    assert status == 0
    assert log.splitlines() == [
        "srun --cpus-per-task=3 --wait=60 --kill-on-bad-exit=0 "
        "python -m spidr_jax.main --config=a b endless",
        "python -m spidr_jax.main --config=a b endless",
        "saved",
        "scontrol requeue 71",
    ]
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --signal=B:USR1@" in text
    assert "#SBATCH --requeue" in text


@pytest.mark.parametrize("status", [0, 7])
def test_slurm_ends_with_the_status_of_the_run(stand_ins: dict[str, str], status: int) -> None:
    command = ["bash", str(LAUNCH / "slurm.sbatch"), str(status)]
    ended, log = run_with_signal(command, stand_ins, None)
    assert ended == status
    assert "requeue" not in log


@pytest.mark.parametrize(
    ("last", "number", "status"), [("endless", signal.SIGTERM, 143), ("0", None, 0), ("7", None, 7)]
)
def test_a_pod_that_saved_but_is_not_finished_counts_as_failed(
    stand_ins: dict[str, str], last: str, number: int | None, status: int
) -> None:
    _, container, _ = of_jobset()
    command = [*container["command"], *container["args"], last]
    ended, log = run_with_signal(command, stand_ins, number)
    assert ended == status
    assert log.startswith(f"python -m spidr_jax.main {' '.join(container['args'])} {last}\n")
    assert ("saved" in log) == (status == 143)


def test_tpu_hosts_get_the_flags_as_they_are(stand_ins: dict[str, str], tmp_path: Path) -> None:
    env = stand_ins | {"TPU_NAME": "pod", "ZONE": "z1", "PROJECT": "p"}
    (tmp_path / "spidr" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "bin" / "python", tmp_path / "spidr" / "bin" / "python")
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "train", "--config=x y", "--config.a=(1, 2)", "0"]
    subprocess.run(command, env=env, cwd=tmp_path, check=True)
    called, ran = (tmp_path / "log").read_text().splitlines()
    assert called.startswith(
        "compute tpus tpu-vm ssh pod --zone=z1 --project=p --worker=all --command="
    )
    assert ran == "python -m spidr_jax.main --config=x y --config.a=(1, 2) 0"
    refused = subprocess.run(["bash", command[1], "train"], env=env, cwd=tmp_path, check=False)
    assert refused.returncode == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_local_multiprocess_passes_signals_on(
    stand_ins: dict[str, str], number: int, status: int
) -> None:
    command = ["bash", str(LAUNCH / "local_multiprocess.sh"), "2", "endless"]
    ended, log = run_with_signal(command, stand_ins | {"GPUS": "4"}, number, pythons=2)
    assert ended == status
    assert log.count("saved") == 2
    started = re.findall(r"^process (\d) of 2 at 127\.0\.0\.1:\d+, devices (\S+)$", log, re.M)
    assert sorted(started) == [("0", "0,1"), ("1", "2,3")]


# ---- really run


def launch(number: int, flags: list[str], output: Path) -> subprocess.Popen[bytes]:
    command = ["bash", str(LAUNCH / "local_multiprocess.sh"), str(number), *flags]
    with output.open("w") as file:
        env = environment(1, PYTHON=sys.executable, GPUS=0)
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_run_goes_on_from_its_last_save(tmp_path: Path) -> None:
    config = tiny.config(tiny.write_corpus(tmp_path / "corpus"), tmp_path / "run")
    config.update(steps=1_000_000, log_every=1)
    config.checkpoint.every = 5
    output = tmp_path / "output"
    with launch(2, tiny.flags(config), output) as process:
        while "step      12/" not in output.read_text():
            assert process.poll() is None, output.read_text()
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        killed = [
            int(child)
            for child in children
            if b"JAX_PROCESS_ID=1\0" in Path(f"/proc/{child}/environ").read_bytes()
        ]
        assert len(killed) == 1
        began = time.monotonic()
        os.kill(killed[0], signal.SIGKILL)
        assert process.wait(100) == 128 + signal.SIGKILL, output.read_text()
        assert time.monotonic() - began < 60
    # Ours, where the broken connection is noticed first, or JAX's, where the missing heartbeat is.
    assert re.search("another (process ended first|task died)", output.read_text())
    reached = metrics.read(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    saved = int(train.build_state(tiny.open_run(config)).step)
    assert saved % 5 == 0
    assert reached - 10 < saved <= reached + 1, "the last save, or the one before if it was in work"


def test_local_multiprocess_ends_all_with_the_status_of_the_first_that_fails(
    tmp_path: Path,
) -> None:
    flags = [f"--config={tiny.SMOKE}", "--config.steps=-1"]
    with launch(2, flags, tmp_path / "output") as process:
        assert process.wait(60) == 1
    lines = (tmp_path / "output").read_text()
    assert re.search(r"process [01] of 2: error: config.steps = -1: allowed is", lines)
    refused = launch(0, flags, tmp_path / "usage")
    assert refused.wait(20) == 2
    assert "usage:" in (tmp_path / "usage").read_text()
    shared = subprocess.run(
        ["bash", str(LAUNCH / "local_multiprocess.sh"), "2", *flags],
        env=os.environ | {"GPUS": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shared.returncode == 2
    assert "3 GPUs cannot be shared equally by 2 processes" in shared.stderr
