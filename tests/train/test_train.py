"""A run as a whole: files it writes, exact resume, interruption, and what it refuses."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
import tiny
from ml_collections import ConfigDict

from spidr_jax.train import loop as train
from spidr_jax.train import metrics
from spidr_jax.train import preemption as stop


def assert_same_state(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def straight(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run of six steps, over the freeze step and the end of an epoch."""
    config = tiny.config(manifest, tmp_path_factory.mktemp("straight") / "run")
    config.freeze_step = 4
    config.log_every = 1
    plan = tiny.open_run(config).task.data.plan
    assert plan.batches_per_epoch < config.steps
    return config, *tiny.run_to_end(config)


def test_metrics_have_the_promised_names_and_values_of_their_step(straight: Any) -> None:
    config, state, lines = straight
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    promised = ["loss", "target_ppl", "pred_ppl", "grad_norm", "learning_rate", "teacher_decay"]
    promised += ["active_codes", "skipped", "bad_rows"]
    promised += [
        f"{n}/{k}" for n in ("loss", "target_ppl", "pred_ppl", "active_codes") for k in (1, 2)
    ]
    for line in lines:
        assert set(promised) <= set(line)
        assert line["loss"] == pytest.approx((line["loss/1"] + line["loss/2"]) / 2, rel=1e-6)
    rise = (lines[3]["learning_rate"] - lines[0]["learning_rate"]) / 3
    optimizer = config.optimizer
    slope = optimizer.lr * (1 - optimizer.init_lr_scale) / optimizer.warmup_steps
    assert lines[0]["learning_rate"] == pytest.approx(optimizer.lr * optimizer.init_lr_scale)
    assert rise == pytest.approx(slope, rel=1e-3)
    assert state.step == 6
    saved = json.loads((Path(config.workdir) / "config.json").read_text())
    assert (saved["freeze_step"], saved["model"]["encoder_embed_dim"]) == (4, 32)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_stopped_and_resumed_equals_uninterrupted(straight: Any, stop: int, tmp_path: Path) -> None:
    whole, state, lines = straight
    config = tiny.changed(whole, workdir=str(tmp_path / "run"), steps=stop)
    tiny.run_to_end(config)
    config.steps = 6
    resumed_state, resumed_lines = tiny.run_to_end(config)
    assert_same_state(state, resumed_state)
    assert resumed_lines == lines


def test_a_finished_run_started_again_does_nothing(straight: Any) -> None:
    config, state, lines = straight
    again, same_lines = tiny.run_to_end(config)
    assert same_lines == lines
    assert_same_state(state, again)


def test_a_changed_config_is_refused_field_by_field(straight: Any) -> None:
    config = tiny.changed(straight[0], seed=4, optimizer={"lr": 1e-3})
    with pytest.raises(ValueError, match=r"config\.optimizer\.lr was 0\.\d+ and is 0\.001"):
        train.build_state(tiny.open_run(config))
    with pytest.raises(ValueError, match=r"config\.seed was 3 and is 4"):
        train.build_state(tiny.open_run(config))


def test_another_architecture_is_refused_though_allowed(straight: Any) -> None:
    wider = {"encoder_ff_interm_features": 96}
    config = tiny.changed(straight[0], model=wider, allow_changes="model")
    said = r"checkpoint 6 does not fit the config .*: \d+ arrays, the first .* undo that"
    with pytest.raises(ValueError, match=said):
        train.build_state(tiny.open_run(config))


def test_layers_to_exclude_that_are_none_are_named_before_anything_runs(
    manifest: Path, tmp_path: Path
) -> None:
    config = tiny.config(manifest, tmp_path)
    config.teacher.exclude_layers = ("pos_conv_embd",)
    with pytest.raises(ValueError, match=r"config\.teacher\.exclude_layers has 'pos_conv_embd'"):
        train.build_state(tiny.open_run(config))


def test_changed_data_are_refused(manifest: Path, tmp_path: Path) -> None:
    copy = tiny.write_corpus(tmp_path / "corpus")
    config = tiny.config(copy, tmp_path / "run")
    config.steps = 1
    tiny.run_to_end(config)
    tiny.write_corpus(tmp_path / "corpus", utterances=15)
    with pytest.raises(ValueError, match="manifest"):
        train.build_state(tiny.open_run(config))


def test_what_may_change_freely_may(straight: Any) -> None:
    config = tiny.changed(straight[0], steps=7, log_every=5, checkpoint={"keep": 2})
    assert train.build_state(tiny.open_run(config)).step == 6


def test_bad_files_are_replaced_counted_and_reported(tmp_path: Path) -> None:
    corpus = tiny.write_corpus(tmp_path / "corpus")
    samples = np.full(20_000, np.nan, np.float32)
    rows = (tmp_path / "corpus" / "manifest.csv").read_text().splitlines()
    name, path, _ = rows[-1].split(",")
    soundfile.write(tmp_path / "corpus" / path, samples, 16_000, subtype="FLOAT")
    corpus.write_text("\n".join([*rows[:-1], f"{name},{path},20000"]) + "\n")
    config = tiny.config(corpus, tmp_path / "run")
    state, lines = tiny.run_to_end(config)
    assert lines[-1]["bad_rows"] > 0
    assert lines[-1]["skipped"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_corpus_of_another_rate_is_refused_before_training(tmp_path: Path) -> None:
    corpus = tiny.write_corpus(tmp_path / "corpus")
    for file in (tmp_path / "corpus").glob("*.wav"):
        audio, _ = soundfile.read(file)
        soundfile.write(file, np.stack([audio, audio], axis=1), 44_100, subtype="PCM_16")
    with pytest.raises(ValueError, match=r"44100|44,100|44\.1"):
        tiny.open_run(tiny.config(corpus, tmp_path / "run"))


def test_no_room_for_a_checkpoint_warns_and_fails_at_the_end(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config = tiny.config(manifest, tmp_path / "run")
    config.steps = 4
    config.checkpoint.every = 2
    run = tiny.open_run(config)
    state = train.build_state(run)
    free = iter([10**9, 10])
    monkeypatch.setattr(
        "spidr_jax.train.checkpoint.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": next(free)}),
    )
    with pytest.raises(OSError, match="the newest checkpoint is 2"):
        train.train(run, state)
    assert "no room for checkpoint 4" in capsys.readouterr().out
    assert train.build_state(tiny.open_run(config)).step == 2


HOLDS = """
import sys
from pathlib import Path
from spidr_jax.train.preemption import lock_folder
held = lock_folder(Path(sys.argv[1]))
print("holds", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_a_process_trains_is_refused_until_it_is_killed(
    manifest: Path, tmp_path: Path
) -> None:
    config = tiny.config(manifest, tmp_path)
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(ValueError, match=rf"workdir = .*process {other.pid} on .*; let it end"):
            tiny.open_run(config)
        other.kill()
    tiny.open_run(config)


def test_an_interrupt_that_was_lost_before_training_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop, "_interrupted", [])
    with stop.stop_on_signals():
        pass
    with pytest.raises(KeyboardInterrupt):
        stop.raise_interrupt(signal.SIGINT, None)  # as in a callback, which only prints it
    with pytest.raises(KeyboardInterrupt), stop.stop_on_signals():
        pytest.fail("it trains on")


def test_a_workdir_that_cannot_be_is_named(manifest: Path, tmp_path: Path) -> None:
    config = tiny.config(manifest, tmp_path / "file" / "run")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"config\.workdir = '.*/file/run': Not a directory"):
        tiny.open_run(config)


def start(config: ConfigDict) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spidr_jax.main", *tiny.flags(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_saves_and_the_same_command_goes_on(
    straight: Any, number: int, status: int, tmp_path: Path
) -> None:
    config = tiny.changed(straight[0], workdir=str(tmp_path / "run"), steps=1_000_000)
    config.checkpoint.every = 1_000_000
    with start(config) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step       2/"):
                process.send_signal(number)
                break
        output = process.stdout.read()
    assert process.returncode == status, output
    assert "saving after this step" in output
    reached = metrics.read(Path(config.workdir) / "metrics.jsonl")[-1]["step"]
    config.steps = max(reached + 1, 6)
    with start(config) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert f"resumes after step {reached}" in output
    lines = metrics.read(Path(config.workdir) / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, config.steps + 1))
    assert [tiny.without_timings(line) for line in lines[:6]] == straight[2]


def test_a_signal_in_something_slow_saves_and_ends_the_process() -> None:
    script = (
        "import os, signal, time\n"
        "from spidr_jax.train.preemption import stop_on_signals\n"
        "with stop_on_signals() as stop, stop.slow(lambda: print('saved', flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "    print('too late')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr
