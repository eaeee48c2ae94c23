"""Time, arithmetic and memory of a training step: hand-computed values, and a small run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from spidr_jax.bench import __main__ as bench
from spidr_jax.bench import memory, setups, targets
from spidr_jax.bench.flops import count_step
from spidr_jax.bench.memory import Memory
from spidr_jax.method.step import init_state, make_train_step
from spidr_jax.model.config import ModelConfig
from spidr_jax.pretraining import Pretraining

FIELDS: dict[str, Any] = {
    "extractor_conv_layer_config": ((4, 10, 5), (6, 3, 2)),
    "encoder_embed_dim": 8,
    "encoder_pos_conv_kernel": 6,
    "encoder_pos_conv_groups": 2,
    "encoder_pos_conv_depth": 2,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 16,
    "codebook_size": 5,
    "num_codebooks": 2,
}
SMALL = FIELDS | {"encoder_num_layers": 1, "num_codebooks": 1}  # to compile
ROWS, SAMPLES, FRAMES = 2, 2_640, 263
FIRST = 527  # frames after the first convolution

CONFIG = f"""
import runpy

def get_config():
    config = runpy.run_path({str(tiny.SMOKE)!r})["get_config"]()
    config.precision = "bfloat16"
    config.model.update({SMALL!r})
    config.data.max_batch_samples = {ROWS * SAMPLES}
    config.data.max_samples = {SAMPLES}
    config.data.min_samples = 0
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def options() -> Iterator[None]:
    """JAX's options, put back afterwards."""
    names = ("jax_enable_compilation_cache", "jax_remove_custom_partitioning_ptr_from_cache_key")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


# --- arithmetic


@pytest.mark.parametrize("kernel", [6, 8])  # odd and even in each of two layers
def test_arithmetic_is_that_counted_by_hand(kernel: int) -> None:
    model = ModelConfig(**FIELDS | {"encoder_pos_conv_kernel": kernel})
    extractor = 2 * ROWS * (FIRST * 10 * 1 * 4 + FRAMES * 3 * 4 * 6 + FRAMES * 6 * 8)
    first = 2 * ROWS * FIRST * 10 * 4
    attention = 2 * ROWS * FRAMES * (8 * 24 + 8 * 8) + 2 * 2 * ROWS * FRAMES * FRAMES * 8
    feed_forward = 2 * 2 * ROWS * FRAMES * 8 * 16
    frames, taps = {6: (FRAMES, 3), 8: (FRAMES + 1, 4)}[kernel]
    encoder = 2 * 2 * ROWS * frames * taps * 4 * 8 + 3 * (attention + feed_forward)
    rest = 4 * encoder + 5 * (2 * 2 * ROWS * FRAMES * 8 * 5)
    assert count_step(model, ROWS, SAMPLES, frozen=False) == 3 * extractor - first + rest
    assert count_step(model, ROWS, SAMPLES, frozen=True) == extractor + rest


def test_arithmetic_is_what_xla_counts(options: None) -> None:
    base = str(tiny.REPOSITORY / "configs" / "base.py")
    setup = setups.load(base, ["model.encoder_num_layers=8"], 1, 235_600)
    config, key = setup.step_config, jax.random.key(0)
    state = jax.eval_shape(lambda: init_state(config, key))
    step = jax.jit(make_train_step(config, frozen=False))
    lowered = step.lower(state, setups.draw_batch(setup), key)
    counted = count_step(config.model, 1, 235_600, frozen=False)
    # XLA adds what is computed by element
    assert counted < lowered.cost_analysis()["flops"] < 1.02 * counted


# --- a run


@pytest.mark.slow
def test_a_step_is_measured(config: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spidr_jax.bench", "step", "--config", config]
    command += ["--profile", str(tmp_path / "trace"), "--json", str(tmp_path / "found.json")]
    command += ["--steps", "3", "--frozen", "--set", "model.encoder_attention_dropout=0"]
    done = subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    assert "| what | " in done.stdout
    assert len(list((tmp_path / "trace").rglob("*.trace.json.gz"))) == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["profile"] == []  # of a CPU
    conditions = found["conditions"]
    assert conditions | {"rows": ROWS, "samples": SAMPLES, "frames": FRAMES} == conditions
    assert conditions | {"precision": "bfloat16", "frozen": True} == conditions
    assert found["tflop"] * 1e12 == count_step(ModelConfig(**SMALL), ROWS, SAMPLES, frozen=True)
    (ours,) = found["contenders"].values()
    low, high = ours["quartiles_ms"]
    assert 0 < low <= ours["median_ms"] <= high
    assert ours["steps"] == 3
    seconds = ours["median_ms"] / 1e3
    assert ours["audio_per_s"] == pytest.approx(ROWS * SAMPLES / 16_000 / seconds)
    assert ours["tflops"] == pytest.approx(found["tflop"] / seconds)
    assert ours["share_of_peak"] == pytest.approx(ours["tflops"] / found["peak_tflops"])
    assert 0 < ours["share_of_peak"] < 1
    assert ours["lower_s"] > 0
    assert ours["compile_s"] > 0
    assert ours["planned_bytes"] > ROWS * FIRST * 4 * 2  # what the first convolution gives


# --- memory


@pytest.mark.slow
def test_memory_of_rows_is_a_line(config: str, options: None) -> None:
    setup = setups.load(config, samples=1_205, rows=8)
    machine = targets.find(None)
    found = memory.bench_memory(setup, machine)
    assert found.row > 240 * 4 * 2  # what the first convolution gives, for its backward pass
    norm, dense = 2 * 8, 8 * 16 + 16 + 16 * 8 + 8
    student = 2 * (3 * 4 * 8 + 8) + norm + (8 * 24 + 8 * 8 + 8 + dense + 2 * norm)
    extractor = 10 * 4 + 2 * 4 + 3 * 4 * 6 + 2 * 6 + 2 * 6 + 6 * 8 + 8
    params = student + extractor + (8 * 5 + 5) + 8
    moments = 2 * (params - norm)  # none of the last layer's second norm
    codebooks, counters = 5 * 8 + 5, 3
    assert found.state == 4 * (params + moments + student + codebooks + counters)
    compiled = targets.compile_step(
        machine, Pretraining(setup.config), 8, setup.samples, frozen=False
    )
    assert memory.planned_bytes(compiled) == pytest.approx(found.of(8), rel=0.05)


def test_the_batches_of_devices() -> None:
    gib = 2**30
    found = Memory(state=gib, fixed=2.0 * gib, row=1.5 * gib)
    text = memory.table(found, targets.find(None), [1, 16, 40], samples=235_600)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[2] == "| 1.00 | 3.50 | 5.00 | 8.00 | 14.00 | 26.00 |"
    assert lines[5] == "| 0 | 6 | 18 |"
    assert "--target h100 asks a GPU's compiler" in text  # the tests' backend is the CPU


# --- what is asked for


def test_a_config_and_its_fields(config: str, options: None) -> None:
    changes = ["model.encoder_dropout=0", "precision=float32", "model.encoder_num_layers=3"]
    setup = setups.load(config, changes, rows=7)
    assert (setup.rows, setup.samples, setup.frames) == (7, SAMPLES, FRAMES)
    assert setup.step_config.model.encoder_dropout == 0.0
    assert setup.step_config.model.encoder_num_layers == 3
    assert setup.step_config.dtype == jax.numpy.float32
    assert setups.load(config).rows == ROWS


def test_noise_comes_as_the_pipeline_gives_audio(config: str, options: None) -> None:
    batch = setups.draw_batch(setups.load(config, samples=16_000, rows=3))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "waveforms": ((3, 16_000), np.int16),
        "mean": ((3,), np.float32),
        "inv_std": ((3,), np.float32),
    }
    waveforms = (batch["waveforms"] - batch["mean"][:, None]) * batch["inv_std"][:, None]
    np.testing.assert_allclose(waveforms.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(waveforms.std(axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["step", "--batch", "0"], "batch: 0, allowed is 1 or more"),
        (["step", "--samples", "14"], "samples: 14 give no frame"),
        (["step", "--samples", "9000"], "batch: 0, allowed is 1 or more"),
        (["step", "--steps", "0"], "steps: 0, allowed is 1 or more"),
        (["step", "--config", "none.py"], "none.py"),
        (["step", "--config", bench.__file__], "no attribute 'get_config'"),
        (["step", "--set", "model.encoder_dropout"], "--set model.encoder_dropout: "),
        (["step", "--set", "model.encoder_drop=0"], "model.encoder_drop=0: 'encoder_drop'"),
        (["step", "--set", "model.encoder_dropout=1"], "config.model.encoder_dropout = 1.0"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str],
    said: str,
    config: str,
    options: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *rest = arguments
    assert bench.main([command, "--config", config, *rest]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_reference_that_is_not_there_is_said(
    config: str,
    options: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert bench.main(["step", "--config", config, "--reference"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("the reference cannot be imported: ")
    assert error.count("\n") == 1
