"""What a run starts from: its checkpoints, damaged, lost or changed, and other models' weights."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from spidr_jax import convert
from spidr_jax.train import loop as train
from spidr_jax.train import metrics, resume
from spidr_jax.train.checkpoint import DamagedError
from spidr_jax.weights.check import named
from spidr_jax.weights.load import read

# what TensorStore's threads say of a read that failed, at any later time
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigDict, Any]:
    """A run with checkpoints 3 and 6, and its last state."""
    folder = tmp_path_factory.mktemp("resume")
    config = tiny.config(tiny.write_corpus(folder / "corpus"), folder / "run")
    return config, tiny.run_to_end(config)[0]


def start(config: ConfigDict) -> Any:
    return train.build_state(tiny.open_run(config))


def copy_of(config: ConfigDict, folder: Path, **changes: Any) -> ConfigDict:
    """The config of a copy of a run's folder."""
    shutil.copytree(config.workdir, folder / "run")
    return tiny.changed(config, workdir=str(folder / "run"), **changes)


def checkpoint(config: ConfigDict, step: int) -> Path:
    return Path(config.workdir) / "checkpoints" / str(step)


def largest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("state/d/*", "state/d/"),
        ("state/manifest.ocdbt", "state"),
        ("state/ocdbt.process_0/d/*", r"params|opt_state|teacher"),
        ("state/_METADATA", "_METADATA"),
        ("config/metadata", "config/metadata"),
        ("data/metadata", "data/metadata"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_earlier_one_offered(
    trained: Any, tmp_path: Path, pattern: str, named: str, damage: str
) -> None:
    config = copy_of(trained[0], tmp_path)
    file = largest(checkpoint(config, 6), pattern)
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DamagedError, match="checkpoint 6 cannot be used") as caught:
        start(config)
    assert re.search(named, str(caught.value))
    assert str(caught.value).endswith("--config.resume_step goes on from an earlier one: 3")
    assert "\n" not in str(caught.value)


def test_the_run_goes_on_from_an_earlier_checkpoint_and_loses_nothing(
    trained: Any, tmp_path: Path, capsys: Any
) -> None:
    config = copy_of(trained[0], tmp_path, resume_step=3)
    damaged = largest(checkpoint(config, 6), "state/d/*")
    damaged.write_bytes(b"")
    run = tiny.open_run(config)
    state = train.build_state(run)
    assert state.step == 3
    assert "checkpoints [6] now lie in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run" / "set_aside").iterdir()] == ["6-0"]
    train.train(run, state)
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    again = start(config)  # with the same flags: from what the run has become since
    assert again.step == 6
    assert "config.resume_step = 3 has been gone on from: now after 6" in capsys.readouterr().out
    for a, b in zip(jax.tree.leaves(trained[1]), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_that_is_not_there_is_refused(trained: Any) -> None:
    config = tiny.changed(trained[0], resume_step=4)
    with pytest.raises(ValueError, match=r"config\.resume_step = 4: .* allows 3, 6, 0 \(0: a new"):
        start(config)


def test_a_step_of_a_run_without_checkpoints_is_refused(trained: Any, tmp_path: Path) -> None:
    config = copy_of(trained[0], tmp_path, resume_step=3)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match=r"config\.resume_step = 3: .* allows 0 \(0: a new start"):
        start(config)
    assert len(metrics.read(tmp_path / "run" / "metrics.jsonl")) == 4


def test_a_frozen_checkpoint_does_not_go_on_unfrozen(trained: Any, tmp_path: Path) -> None:
    config = copy_of(trained[0], tmp_path, freeze_step=4, allow_changes="freeze_step", steps=7)
    config.resume_step = 3
    run = tiny.open_run(config)
    train.train(run, train.build_state(run))
    config.update(freeze_step=1000, steps=9)
    with pytest.raises(ValueError, match=r"does not fit .*config\.freeze_step.* missing there"):
        start(config)


def test_weights_for_a_run_that_is_there_already_are_not_silently_left(
    trained: Any, tmp_path: Path, capsys: Any
) -> None:
    config = copy_of(trained[0], tmp_path, init_from=str(tmp_path / "nothing"))
    assert start(config).step == 6
    assert "note: config.init_from is for a new run" in capsys.readouterr().out


def test_step_0_starts_again_and_sets_the_checkpoints_aside(trained: Any, tmp_path: Path) -> None:
    config = copy_of(trained[0], tmp_path, resume_step=0, seed=11)
    assert start(config).step == 0
    names = {path.name.split("-")[0] for path in (tmp_path / "run" / "set_aside").iterdir()}
    assert names == {"3", "6"}


def test_a_run_without_its_checkpoints_does_not_silently_start_again(
    trained: Any, tmp_path: Path
) -> None:
    config = copy_of(trained[0], tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    config.checkpoint.every = 2
    with pytest.raises(ValueError, match="no checkpoint, but metrics up to step 6"):
        start(config)
    config.checkpoint.every = 3  # killed while it saved its first checkpoint at step 3
    assert start(config).step == 0


def test_a_changed_field_can_be_allowed_by_name(trained: Any, tmp_path: Path) -> None:
    config = copy_of(trained[0], tmp_path)
    config.optimizer.lr = 1e-3
    config.optimizer.eps = 1e-5
    config.allow_changes = "optimizer.lr"
    with pytest.raises(ValueError, match=r"config\.optimizer\.eps was") as caught:
        start(config)
    assert "optimizer.lr was" not in str(caught.value)
    config.allow_changes = "optimizer.lr, optimizer.eps"
    assert start(config).step == 6
    config.allow_changes = "optimizer"
    assert start(config).step == 6
    config.seed, config.allow_changes = 4, "optimizer,seed"  # a seed changes the data too
    with pytest.raises(ValueError, match=r"has changed: the data: files.*or an allowed field\."):
        start(config)
    config.allow_changes = "optimizer,seed,data"
    assert start(config).step == 6


def test_other_data_can_be_allowed_and_a_moved_corpus_needs_no_leave(
    trained: Any, tmp_path: Path
) -> None:
    config = copy_of(trained[0], tmp_path)
    config.data.manifest = str(tiny.write_corpus(tmp_path / "moved"))
    assert start(config).step == 6
    config.data.manifest = str(tiny.write_corpus(tmp_path / "other", utterances=20))
    with pytest.raises(ValueError, match="in the manifests"):
        start(config)
    config.allow_changes = "data"
    assert start(config).step == 6


def test_versions_are_saved_and_a_change_is_said(trained: Any, tmp_path: Path, capsys: Any) -> None:
    config = copy_of(trained[0], tmp_path)
    file = checkpoint(config, 6) / "data" / "metadata"
    position = json.loads(file.read_text())
    assert position["versions"] == resume.versions()
    assert position["versions"]["jax"] == jax.__version__
    start(config)
    assert "note:" not in capsys.readouterr().out
    position["versions"]["jax"] = "0.1.2"
    file.write_text(json.dumps(position))
    start(config)
    assert "note: checkpoint 6 was made with jax 0.1.2;" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["run", "checkpoint", "file"])
def test_a_new_run_starts_from_other_weights(trained: Any, tmp_path: Path, kind: str) -> None:
    source = Path(trained[0].workdir)
    if kind == "checkpoint":
        source = source / "checkpoints" / "3"
    if kind == "file":
        convert.to_torch_file(source, tmp_path / "model.safetensors")
        source = tmp_path / "model.safetensors"
    changes = {"workdir": str(tmp_path / "new"), "init_from": str(source), "seed": 8}
    config = tiny.changed(trained[0], **changes)
    state, model = start(config), read(source)
    assert state.step == 0
    for name in ("params", "teacher", "codebooks"):
        ours, theirs = named(getattr(state, name)), named(model.arrays[name])
        assert ours.keys() == theirs.keys() != set()
        assert all(np.array_equal(ours[leaf], theirs[leaf]) for leaf in ours)
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_weights_of_another_model_are_refused(trained: Any, tmp_path: Path) -> None:
    source = trained[0].workdir
    config = tiny.changed(trained[0], workdir=str(tmp_path / "new"), init_from=source)
    config.model.codebook_size = 12
    with pytest.raises(ValueError, match=r"config\.init_from = .*codebooks.*\(2, 8\).*\(2, 12\)"):
        start(config)
    config.init_from = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.init_from: .*nothing"):
        start(config)
