"""State split over devices: where each array lies, equal results, elastic checkpoints."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from group import environment
from jax.sharding import AbstractMesh, PartitionSpec

from spidr_jax.method.step import TrainState
from spidr_jax.train import placement

STEPS, MOVED, BACK = 8, 3, 6  # of a run; when it moves to one device and back, by checkpoints
FREEZE = 3


def state_of(*shapes: tuple[int, ...]) -> TrainState:
    """A state with the same arrays in each of its parts."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(scalar, scalar, arrays, arrays, arrays, arrays)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((768, 3072), (None, "data")),
        ((3072, 768), ("data",)),
        ((16, 16, 5), (None, "data")),  # of equal ones the last
        ((12, 768, 100), (None, "data")),
        ((12, 8, 20), (None, "data")),  # 12 and 20 do not divide by 8
        ((6, 20), ()),
        ((0, 8), (None, "data")),
        ((7,), ()),
        ((), ()),
    ],
)
def test_a_state_is_split_along_the_largest_dimension_that_divides(
    shape: tuple[int, ...], spec: tuple[Any, ...]
) -> None:
    mesh = AbstractMesh((8,), ("data",))
    state = state_of(shape)
    split = placement.state_shardings(state, mesh, True, ["codebooks"])
    whole = PartitionSpec()
    assert [split.codebooks[0].spec, split.step.spec] == [whole, whole]
    for part in (split.params, split.opt_state, split.teacher):
        assert part[0].spec == PartitionSpec(*spec)
    replicated = placement.state_shardings(state, mesh, False)
    assert {place.spec for place in jax.tree.leaves(replicated)} == {whole}


def train(manifest: Path, folder: Path, fsdp: bool, steps: int) -> None:
    """Train a run to `steps` on this process's devices; keep the states it read and saved."""
    from spidr_jax.train import loop as train

    config = tiny.config(manifest, folder / "run")
    config.update(steps=steps, log_every=1, freeze_step=FREEZE)
    config.model.extractor_conv_layer_config = ((16, 10, 5), (16, 8, 8), (16, 8, 8))
    config.model.encoder_pos_conv_depth = 1
    config.data.update(planned_devices=8, max_batch_samples=16_000)
    config.sharding.fsdp = fsdp
    run = tiny.open_run(config)
    state = train.build_state(run)
    write_state(folder / f"read-{int(state.step)}-on-{jax.device_count()}", state)
    gathered = placement.gather(state.params, run.mesh)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(gathered))
    save = run.checkpoints.save

    def note(step: int, state: Any, *others: Any) -> None:
        write_state(folder / f"saved-{step}-on-{jax.device_count()}", state)
        save(step, state, *others)

    run.checkpoints.save = note  # type: ignore[method-assign]
    assert train.train(run, state) == 0


def write_state(path: Path, state: Any) -> None:
    """Write a state's arrays, and the shape of each one's part on the first device."""
    leaves = [(jax.tree_util.keystr(k), x) for k, x in jax.tree_util.tree_leaves_with_path(state)]
    np.savez(path.with_suffix(".npz"), **{name: np.asarray(x) for name, x in leaves})
    parts = {name: x.addressable_shards[0].data.shape for name, x in leaves}
    path.with_suffix(".json").write_text(json.dumps(parts))


def read_state(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return dict(arrays)


def part_sizes(path: Path) -> dict[str, int]:
    """Numbers in the first device's part of each array."""
    parts = json.loads(path.with_suffix(".json").read_text())
    return {name: math.prod(shape) for name, shape in parts.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to the same step: whole; split; and split, then whole on one device, then split."""
    folder = tmp_path_factory.mktemp("runs")
    manifest = tiny.write_corpus(folder / "corpus", utterances=36)

    def start(devices: int, *runs: tuple[str, bool, int]) -> None:
        command = [sys.executable, __file__, str(manifest), str(folder), json.dumps(runs)]
        subprocess.run(command, env=environment(devices), check=True, timeout=500)

    start(8, ("whole", False, STEPS), ("split", True, STEPS))
    shutil.copytree(folder / "split", folder / "moved")
    for later in (BACK, STEPS):
        shutil.rmtree(folder / "moved" / "run" / "checkpoints" / str(later))
        (folder / "moved" / f"saved-{later}-on-8.npz").unlink()
    start(1, ("moved", False, BACK))
    start(8, ("moved", True, STEPS))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("when", ["read-0", "saved-3", "saved-6", "saved-8"])
def test_parameters_moments_and_teacher_of_a_run_are_really_split(runs: Path, when: str) -> None:
    sizes = {name: x.size for name, x in read_state(runs / "split" / f"{when}-on-8").items()}
    split = part_sizes(runs / "split" / f"{when}-on-8")
    assert part_sizes(runs / "whole" / f"{when}-on-8") == sizes
    parts = {name: name.split("[")[0].split(".")[1] for name in sizes}
    for name, size in sizes.items():
        # in the tiny model every array of these has a dimension that 8 divides
        whole = parts[name] not in ("params", "opt_state", "teacher") or name.endswith(".count")
        assert split[name] == (size if whole else size // 8), name
    moments = [name for name in sizes if parts[name] == "opt_state"]
    assert sum(split[name] for name in moments) < 0.13 * sum(sizes[name] for name in moments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["split", "moved"])
def test_results_are_those_of_a_whole_state(runs: Path, name: str) -> None:
    start, end = (read_state(runs / "whole" / f"{when}-on-8") for when in ("read-0", "saved-8"))
    first, last = (read_state(runs / name / f"{when}-on-8") for when in ("read-0", "saved-8"))
    assert end.keys() == last.keys()
    for key, value in start.items():
        np.testing.assert_array_equal(first[key], value, err_msg=key)
    assert last[".step"] == STEPS
    assert last[".skipped"] == 0
    for key, value in end.items():
        limit = 1e-5 if start[key].any() else 1e-4
        assert np.linalg.norm(last[key] - value) <= limit * np.linalg.norm(value), key
    moved = [key for key in end if not np.array_equal(end[key], start[key])]
    assert len(moved) > 0.8 * len(end)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved_on", "read_on"), [(MOVED, 8, 1), (BACK, 1, 8)])
def test_a_checkpoint_is_read_the_same_on_other_devices(
    runs: Path, step: int, saved_on: int, read_on: int
) -> None:
    saved = read_state(runs / "moved" / f"saved-{step}-on-{saved_on}")
    read = read_state(runs / "moved" / f"read-{step}-on-{read_on}")
    assert saved.keys() == read.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(read[key], value, err_msg=key)
    whole = {key: value.size for key, value in read.items()}
    parts = part_sizes(runs / "moved" / f"read-{step}-on-{read_on}")
    assert (parts == whole) == (read_on == 1)


if __name__ == "__main__":
    for name, fsdp, steps in json.loads(sys.argv[3]):
        (Path(sys.argv[2]) / name).mkdir(exist_ok=True)
        train(Path(sys.argv[1]), Path(sys.argv[2]) / name, fsdp, steps)
