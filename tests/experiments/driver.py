"""Runs an experiment as its user would: a config file of their own, from training to evaluation."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
import tiny

import spidr_jax
from spidr_jax import evaluate, extract, main
from spidr_jax.data.corpus import open_manifest
from spidr_jax.method.config import Config
from spidr_jax.train import command, config_file
from spidr_jax.train.config import build
from spidr_jax.weights import orbax

BASE = """
from pathlib import Path
import tiny

def get_config():
    return tiny.config(Path({manifest!r}), Path())
"""
FREEZE_STEP, STEPS = 3, 5


@contextlib.contextmanager
def registrations_undone() -> Iterator[None]:
    """Give the package's choices by name back what they were."""
    modules = [module for name, module in sys.modules.items() if name.startswith("spidr_jax.")]
    choices = [
        value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, dict)
    ]
    before = [dict(each) for each in choices]
    try:
        yield
    finally:
        for each, entries in zip(choices, before, strict=True):
            each.clear()
            each.update(entries)


def train(file: Path, workdir: Path, steps: int) -> dict[str, Any]:
    """Train a config file's run to a step; give the state that it saved there."""
    flags = {"workdir": workdir, "steps": steps, "freeze_step": FREEZE_STEP, "log_every": 1}
    config = config_file.read(str(file), {name: str(value) for name, value in flags.items()})
    checked = build(Config, config)
    assert command.train(main.make_task(checked), checked, main.draw) == 0
    saved = orbax.read(workdir, lambda name: True)
    assert saved.step == steps
    return saved.state


def run(tmp_path: Path, text: str) -> Path:
    """Train over the freeze step, stop, resume, load, extract and evaluate.

    Args:
        tmp_path: an empty folder.
        text: a config file's, whose `get_config` changes what `get_config` of base.py beside it
            gives: a tiny run.

    Returns:
        The folder of the run that was not stopped.
    """
    manifest = tiny.write_corpus(tmp_path / "corpus")
    alignment, item = tiny.write_labels(manifest)
    (tmp_path / "base.py").write_text(BASE.format(manifest=str(manifest)))
    file, folder = tmp_path / "experiment.py", tmp_path / "run"
    file.write_text(text)
    with registrations_undone():
        straight = train(file, folder, STEPS)
        train(file, tmp_path / "stopped", FREEZE_STEP + 1)
        resumed = train(file, tmp_path / "stopped", STEPS)
        jax.tree.map(np.testing.assert_array_equal, resumed, straight)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(straight))
        assert straight["skipped"] == 0
        _use(folder, manifest, alignment, item, tmp_path / "out")
    return folder


def _use(folder: Path, manifest: Path, alignment: Path, item: Path, out: Path) -> None:
    speech, row = spidr_jax.load(folder), next(iter(open_manifest(manifest)))
    layer = str(speech.config.encoder_num_layers)
    units = speech.units(soundfile.read(row.path)[0], layer=int(layer))
    assert units.min() >= 0
    of = ["--checkpoint", str(folder), "--manifest", str(manifest), "--layers", layer]
    assert extract.main([*of, "--kind", "units", "--out", str(out)]) == 0
    assert (out / "units" / layer / "manifest.jsonl").is_file()
    labels = ["--alignment", str(alignment), "--item", str(item)]
    assert evaluate.main([*of, *labels, "--out", str(out / "scores.json")]) == 0
