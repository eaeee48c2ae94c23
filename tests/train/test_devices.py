"""Many devices compute what one does: loss, metrics, every tensor, the same masks and dropout."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from group import environment

STEPS, ROWS, SAMPLES = 10, 8, 500
RUNS = ((1, 1), (8, 1), (4, 2))  # devices, parts of the batch that they compute in turn


Pair = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def train_on(number: int, accumulate: int) -> dict[str, np.ndarray]:
    """Ten steps with the batch split over the first `number` devices: metrics, state, masks."""
    import jax
    import jax.numpy as jnp
    import tiny
    from jax.sharding import NamedSharding, PartitionSpec

    from spidr_jax.method import masking
    from spidr_jax.method import step as train_step
    from spidr_jax.model.config import ModelConfig
    from spidr_jax.train.optim import OptimizerConfig

    noise = {"encoder_layer_drop": 0.3, "encoder_projection_dropout": 0.1}
    model = ModelConfig(**tiny.SMALLEST | noise)
    config = train_step.StepConfig(
        model=model,
        masking=masking.MaskingConfig(group_rows=4),
        optimizer=OptimizerConfig(warmup_steps=4),
        dtype=jnp.float32,
        accumulate=accumulate,
    )
    mesh = jax.make_mesh(
        (number,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:number]
    )
    split = NamedSharding(mesh, PartitionSpec("data"))
    copied = NamedSharding(mesh, PartitionSpec())
    init = jax.jit(train_step.init_state, static_argnums=0, out_shardings=copied)
    state = init(config, jax.random.key(0))
    shardings = {"in_shardings": (copied, split, copied), "out_shardings": copied}
    step = jax.jit(train_step.make_train_step(config, frozen=False), **shardings)
    frames = model.framing.num_frames(SAMPLES)
    lengths = jnp.where(jnp.arange(ROWS) % 3 == 0, frames - 20, frames)
    draw_mask = jax.jit(
        lambda key, lengths: masking.sample_spans(key, frames, lengths, config.masking),
        in_shardings=(copied, split),
        out_shardings=split,
    )
    found = {}
    draw, key = np.random.default_rng(0), jax.random.key(1)
    for index in range(STEPS):
        waveforms = draw.standard_normal((ROWS, SAMPLES)).astype(np.float32)
        batch = jax.device_put({"waveforms": waveforms}, split)
        state, metrics = step(state, batch, key)
        for name, value in metrics.items():
            found[f"metric {name} {index}"] = np.asarray(value)
        mask = draw_mask(jax.random.fold_in(key, index), jax.device_put(lengths, split))
        assert len(mask.sharding.device_set) == number
        found[f"mask {index}"] = np.asarray(mask)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found[f"state {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(init(config, jax.random.key(0))):
        found[f"start {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("devices")
    command = [sys.executable, __file__, str(folder)]
    subprocess.run(command, env=environment(8), check=True, timeout=500)
    found = []
    for number, _ in RUNS:
        with np.load(folder / f"{number}.npz") as arrays:
            found.append(dict(arrays))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    return found


@pytest.fixture(params=[1, 2], ids=["8 devices", "4 devices, 2 parts"])
def pair(runs: list[dict[str, np.ndarray]], request: pytest.FixtureRequest) -> Pair:
    return runs[0], runs[request.param]


def test_masks_are_identical_on_one_and_many_devices(pair: Pair) -> None:
    one, many = pair
    masks = [name for name in one if name.startswith("mask ")]
    assert len(masks) == STEPS
    for name in masks:
        np.testing.assert_array_equal(one[name], many[name])
    frames = [f"metric masked_frames {index}" for index in range(STEPS)]
    assert [one[name] for name in frames] == [many[name] for name in frames]


def test_metrics_are_equal_on_one_and_many_devices(pair: Pair) -> None:
    one, many = pair
    for name in one:
        if name.startswith("metric "):
            np.testing.assert_allclose(many[name], one[name], rtol=1e-6, err_msg=name)


def test_every_tensor_is_equal_on_one_and_many_devices(pair: Pair) -> None:
    one, many = pair
    names = [name for name in one if name.startswith("state ") and ".opt_state" not in name]
    assert len(names) > 50
    for name in names:
        limit = 1e-5 if one[name.replace("state", "start")].any() else 1e-4
        error = np.linalg.norm(many[name] - one[name])
        assert error <= limit * np.linalg.norm(one[name]), name
        changed = not np.array_equal(one[name], one[name.replace("state", "start")])
        assert changed or "final_layer_norm" in name or "skipped" in name, name


if __name__ == "__main__":
    for devices, parts in RUNS:
        np.savez(Path(sys.argv[1]) / f"{devices}.npz", **train_on(devices, parts))
