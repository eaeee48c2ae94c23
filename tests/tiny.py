"""A tiny corpus and the config of a tiny run on it."""

import csv
import dataclasses
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from ml_collections import ConfigDict

from spidr_jax.data.corpus import open_manifest
from spidr_jax.eval.items import COLUMNS
from spidr_jax.method import step as train_step
from spidr_jax.method.config import Config
from spidr_jax.method.step import StepConfig
from spidr_jax.model.config import ModelConfig
from spidr_jax.pretraining import Pretraining
from spidr_jax.train import loop, metrics
from spidr_jax.train.checkpoint import Checkpoints
from spidr_jax.train.config import build

REPOSITORY = Path(__file__).parent.parent
SMOKE = REPOSITORY / "configs" / "smoke.py"


def write_corpus(folder: Path, utterances: int = 14, seconds: float = 0.9) -> Path:
    """Write WAV files of tones in noise and their manifest; give the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["fileid", "path", "num_samples"])
        for i in range(utterances):
            samples = int(16_000 * seconds) + 700 * i
            tone = np.sin(np.arange(samples) * random.uniform(0.05, 0.4))
            audio = 0.2 * tone + 0.1 * random.standard_normal(samples)
            soundfile.write(folder / f"u{i:02d}.wav", audio, 16_000, subtype="PCM_16")
            table.writerow([f"u{i:02d}", f"u{i:02d}.wav", samples])
    return folder / "manifest.csv"


def write_labels(manifest: Path) -> tuple[Path, Path]:
    """Write an alignment and ABX items of a corpus: phones A, B, C in turn, 120 ms each."""
    alignment, items = manifest.with_name("alignment.txt"), manifest.with_name("phones.item")
    segments, lines = [], [" ".join(COLUMNS)]
    for number, row in enumerate(open_manifest(manifest)):
        count = row.num_samples // 1920
        for i in range(count):
            times = f"{row.fileid} {i * 0.12:.2f} {(i + 1) * 0.12:.2f} {'ABC'[i % 3]}"
            segments.append(times)
            lines.append(f"{times} X Y {'st'[number % 2]}")
        segments.append(f"{row.fileid} {count * 0.12:.2f} {row.num_samples / 16_000:.4f} A")
    alignment.write_text("\n".join(segments) + "\n")
    items.write_text("\n".join(lines) + "\n")
    return alignment, items


def config(manifest: Path, workdir: Path) -> ConfigDict:
    """The smoke recipe, smaller in every way: seconds to compile, milliseconds a step."""
    made = runpy.run_path(str(SMOKE))["get_config"]()
    made.update(workdir=str(workdir), steps=6, log_every=2, freeze_step=1000, evaluation="", seed=3)
    made.model.update(FIELDS | {"encoder_num_layers": 2})
    made.data.update(
        embedded_corpus="",
        manifest=str(manifest),
        num_buckets=1,
        max_batch_samples=64_000,
        max_samples=320_000,
        min_samples=2_000,
    )
    made.checkpoint.every = 3
    return made


def open_run(config: ConfigDict) -> loop.Run:
    """A pretraining run as the command opens it."""
    checked = build(Config, config)
    return loop.open_run(Pretraining(checked), checked)


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """A copy of a config with other values."""
    copy = ConfigDict(config.to_dict())
    copy.update(values)
    return copy


def run_to_end(config: ConfigDict) -> tuple[Any, list[dict[str, Any]]]:
    """Train; give the last checkpoint's state and the metrics that depend on no clock."""
    run = open_run(config)
    assert loop.train(run, loop.build_state(run)) == 0
    final = jax.device_get(loop.build_state(open_run(config)))
    lines = metrics.read(Path(config.workdir) / "metrics.jsonl")
    return final, [without_timings(line) for line in lines]


def without_timings(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what depends on the clock."""
    timings = ("audio_seconds_per_second", "data_wait")
    return {name: value for name, value in line.items() if name not in timings}


def flags(config: ConfigDict) -> list[str]:
    """The command line of the smoke config with the values of this one."""
    line = [f"--config={SMOKE}"]
    for name, value in config.items():
        fields = value.items() if isinstance(value, ConfigDict) else [(None, value)]
        for field, leaf in fields:
            if leaf is not None:
                line.append(f"--config.{name}{'.' + field if field else ''}={leaf}")
    return line


FIELDS = {
    "extractor_conv_layer_config": ((16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2),
    "encoder_embed_dim": 32,
    "encoder_num_layers": 3,
    "encoder_num_heads": 2,
    "encoder_pos_conv_depth": 2,
    "encoder_ff_interm_features": 48,
    "codebook_size": 8,
    "num_codebooks": 2,
}

SMALLEST: dict[str, Any] = {  # for what takes many steps, or many compilations
    "extractor_conv_layer_config": ((16, 10, 5), (16, 3, 2)),
    "encoder_embed_dim": 16,
    "encoder_pos_conv_depth": 1,
    "encoder_pos_conv_kernel": 5,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
    "codebook_size": 8,
    "num_codebooks": 2,
}


def write_run(folder: Path, step: int = 5, params: Any = None, **changes: Any) -> ModelConfig:
    """A run's folder with one checkpoint of a model that has learnt nothing, or of `params`."""
    step_config = StepConfig(model=ModelConfig(**FIELDS | changes))
    state = train_step.init_state(step_config, jax.random.key(0))
    state = state._replace(step=jnp.asarray(step, jnp.int32), params=params or state.params)
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    position = {"step": step, "plan": "none"}
    checkpoints.save(step, state, position, {"model": dataclasses.asdict(step_config.model)})
    checkpoints.wait()
    checkpoints.close()
    return step_config.model
