"""Compiling for devices that are not there, and what is said where that cannot be done."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from spidr_jax.bench import __main__ as bench
from spidr_jax.bench import targets
from spidr_jax.ops import platform

BASE = ["--config", str(tiny.REPOSITORY / "configs" / "base.py")]


@pytest.mark.parametrize(
    ("target", "installed", "said"),
    [
        ("h1000", (), "--target h1000: allowed are h100, v5e"),
        ("h100", (), 'needs JAX\'s CUDA plugin and ptxas: pip install "spidr_jax[gpu-plan]"'),
        ("h100", ("jax_plugins.xla_cuda13",), "--target h100 needs ptxas: pip install"),
        ("v5e", (), 'needs TPU\'s compiler: pip install "spidr_jax[tpu]"'),
    ],
)
def test_what_cannot_be_compiled_for_is_one_line(
    target: str,
    installed: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found if name in installed else None
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert bench.main(["memory", *BASE, "--target", target]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_programs_are_made_for_the_described_kind() -> None:
    assert platform.kind() == "cpu"
    with platform.target_platform("gpu"):
        assert platform.kind() == "gpu"
    assert platform.kind() == "cpu"


needs_gpu_plan = pytest.mark.skipif(
    bool(targets.missing("h100")), reason="needs pip install spidr_jax[gpu-plan]"
)


@pytest.mark.slow
@needs_gpu_plan
def test_the_memory_of_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "spidr_jax.bench", "memory", "--target", "h100"]
    command += [*BASE, "--frozen", "--json", str(out)]
    command += ["--set", "model.encoder_num_layers=1", "--set", "model.num_codebooks=1"]
    done = subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    assert "gpu (NVIDIA H100 80GB HBM3, described)" in done.stdout
    found = json.loads(out.read_text())
    layer = 4 * 768 * 768 + 2 * 768 * 3072
    assert found["fixed"] > found["state"] > 4 * (1 + 1 + 2) * layer  # teacher, moments
    assert found["row"] > 47_119 * 512 * 2  # the first convolution's output


FOR_FOUR_GPUS = """
from spidr_jax.bench import targets
machine = targets.find("h100", number=4)  # before JAX is used
from spidr_jax.model.config import ModelConfig
from spidr_jax.method.config import Config
from spidr_jax.pretraining import Pretraining

task = Pretraining(Config(model=ModelConfig(encoder_num_layers=2, num_codebooks=2)))
program = targets.compile_step(machine, task, 8, 235_600, frozen=False).as_text()
for kernel in ("attention", "first_layer", "grouped_conv", "norm"):
    assert f'name = "{kernel}' in program, kernel
assert " all-reduce" in program
for moved in ("all-gather", "all-to-all", "collective-permute"):
    assert f" {moved}" not in program, moved
"""


@pytest.mark.slow
@needs_gpu_plan
def test_a_step_for_four_gpus_has_our_kernels_and_gathers_nothing() -> None:
    subprocess.run([sys.executable, "-c", FOR_FOUR_GPUS], check=True, timeout=500)
