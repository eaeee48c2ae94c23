"""Validation: the same batches every time, its numbers, its cadence, the best checkpoint."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from group import environment
from jax.sharding import Mesh

import spidr_jax
from spidr_jax.data import pipeline
from spidr_jax.data.planned_audio import PlannedAudio
from spidr_jax.data.sources import open_sources
from spidr_jax.data.validation_sets import ValidationSet, describe, open_sets, plan_batches
from spidr_jax.method.config import Config
from spidr_jax.method.step import TrainState
from spidr_jax.model.config import ModelConfig
from spidr_jax.pretraining import Pretraining
from spidr_jax.train import loop as train
from spidr_jax.train import metrics, placement, validation
from spidr_jax.train.config import build
from spidr_jax.train.console import ProgressLog
from spidr_jax.train.preemption import Stop
from spidr_jax.train.sinks import Logs
from spidr_jax.train.task import Task

pytestmark = pytest.mark.usefixtures("compiled_once")
LIMITS = {
    "min_samples": 2_000,
    "max_samples": 320_000,
    "num_buckets": 8,
    "max_batch_samples": 64_000,
    "planned_devices": 1,
}


def audio_of(dataset: ValidationSet) -> PlannedAudio:
    batches = dataset.plan.batches_per_epoch
    return PlannedAudio([dataset.source], dataset.plan, num_batches=batches, num_threads=1)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of 14 utterances to train on and of 9 to validate on."""
    folder = tmp_path_factory.mktemp("corpus")
    return tiny.write_corpus(folder / "train"), tiny.write_corpus(folder / "dev", 9, 1.2)


# --- the sets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dev", "'dev' is not name:manifest"),
        ("dev:", "'dev:' is not name:manifest"),
        (":m.csv", "':m.csv' is not name:manifest"),
        ("de v:m.csv", "'de v:m.csv' is not name:manifest"),
        ("dev:no.csv", "dev: 'no.csv': there is no such file"),
    ],
)
def test_bad_specs_are_refused(text: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"config\.validation: ") as caught:
        open_sets(text, **LIMITS)
    assert message in str(caught.value)


def test_a_name_stands_once(manifests: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="the name 'dev' is given twice"):
        open_sets(f"dev:{manifests[0]},dev:{manifests[1]}", **LIMITS)


def test_a_set_smaller_than_a_batch_says_what_to_change(manifests: tuple[Path, Path]) -> None:
    limits = LIMITS | {"planned_devices": 16}
    with pytest.raises(ValueError, match=r"dev: 9 of its 9 .* takes 16: .*planned_devices"):
        open_sets(f"dev:{manifests[1]}", **limits)


def test_rows_must_divide_among_the_devices(manifests: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny.config(manifests[0], tmp_path)
    config.validation, config.data.planned_devices = f"dev:{manifests[1]}", 3
    task = Pretraining(build(Config, config))
    task.open(num_devices=3)
    with pytest.raises(ValueError, match=r"planned_devices = 3: its \d+ rows .* devices x .*, 2;"):
        task.open(num_devices=2)


class Corpus:
    """Utterances of these lengths."""

    def __init__(self, num_samples: list[int]) -> None:
        self.num_samples, self.fingerprint = np.array(num_samples), "x"

    def __len__(self) -> int:
        return len(self.num_samples)


def plan_of(num_samples: list[int], largest: int, planned_devices: int) -> Any:
    source: Any = type("Source", (), {"name": "dev", "weight": 1.0, "corpus": Corpus(num_samples)})
    plan = plan_batches(
        source,
        min_samples=2_000,
        max_samples=320_000,
        num_buckets=4,
        largest=largest,
        planned_devices=planned_devices,
    )
    assert len(plan.buckets) <= 4
    return plan, describe(ValidationSet("dev", source, plan))


def test_a_large_set_comes_in_batches_of_one_device_spread_over_all() -> None:
    plan, text = plan_of([64_080] * 1008, largest=640_000, planned_devices=4)
    assert plan.rows == {64_080: 36}  # 640,000 // 64,080 = 9 for each device
    assert plan.batches == {64_080: 28}
    assert "dev, 1008 of 1008 utterances, 100% of the audio, in 28 batches" in text


@pytest.mark.parametrize("utterances", [3, 20, 50])
def test_a_small_set_comes_in_smaller_batches_not_in_none(utterances: int) -> None:
    plan, text = plan_of([64_080] * utterances, largest=3_800_000, planned_devices=1)
    assert plan.batches == {64_080: 1}
    assert 0.95 * utterances <= plan.rows[64_080] <= utterances
    assert f"dev, {plan.rows[64_080]} of {utterances} utterances" in text


def test_most_of_fifty_utterances_of_all_lengths_is_measured() -> None:
    lengths = np.random.default_rng(0).integers(32_000, 192_000, 50)
    plan, _ = plan_of(lengths.tolist(), largest=3_800_000, planned_devices=1)
    used = [row for step in range(plan.batches_per_epoch) for row in plan.batch(step).rows]
    assert len(set(used)) == len(used) >= 40


# --- the numbers


def test_values_are_means_over_the_batches(manifests: tuple[Path, Path]) -> None:
    (dataset,) = open_sets(f"dev:{manifests[1]}", **LIMITS | {"max_samples": 20_000})
    count = dataset.plan.batches_per_epoch
    assert count == 3
    seen = []

    def eval_fn(state: Any, batch: Any, number: Any) -> Any:
        seen.append(batch)
        return {"loss": np.float32(2 * number), "loss_per_codebook": np.array([number, number**2])}

    task, state = Task(), TrainState(0, 0, {}, "moments", {}, None)
    task.validation = {"dev": audio_of(dataset)}
    values = validation.measure_set(eval_fn, task, state, "dev", placement.make_mesh())
    assert values["loss"] == 2.0
    np.testing.assert_array_equal(values["loss_per_codebook"], [1.0, 5 / 3])
    sources = open_sources(dataset.source.corpus.manifest, None)
    with pipeline.batches(PlannedAudio(sources, dataset.plan), stop=count) as batches:
        for found, expected in zip(seen, batches, strict=True):
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


@pytest.fixture(scope="module")
def straight(manifests: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run of six steps, validated every other one."""
    config = tiny.config(manifests[0], tmp_path_factory.mktemp("straight") / "run")
    config.update(log_every=1, validation_every=2)
    config.validation = f"dev:{manifests[1]},own:{manifests[0]}"
    return config, *tiny.run_to_end(config)


def validated(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name.startswith(("dev/", "own/"))}


def test_every_set_is_measured_at_the_start_the_end_and_at_its_cadence(straight: Any) -> None:
    _, _, lines = straight
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    names = ["active_codes", "loss", "masked_frames", "pred_ppl", "target_ppl"]
    names += [
        f"{n}/{k}" for n in ("active_codes", "loss", "pred_ppl", "target_ppl") for k in (1, 2)
    ]
    promised = {f"{dataset}/{name}" for dataset in ("dev", "own") for name in names}
    for line in lines:
        assert validated(line).keys() == (promised if line["step"] % 2 == 0 else set())
        assert ("loss" in line) == (line["step"] > 0)
    assert lines[0]["dev/loss"] == pytest.approx(np.log(8), abs=0.1)
    assert lines[0]["dev/masked_frames"] == lines[6]["dev/masked_frames"]
    assert lines[0]["dev/loss"] != lines[6]["dev/loss"]


def test_validation_changes_nothing_of_the_run(straight: Any, tmp_path: Path) -> None:
    with_it, state, lines = straight
    config = tiny.changed(with_it, workdir=str(tmp_path / "run"), validation="")
    state_without, lines_without = tiny.run_to_end(config)
    jax.tree.map(np.testing.assert_array_equal, state, state_without)
    assert jax.tree.structure(state) == jax.tree.structure(state_without)
    trained = [{k: v for k, v in line.items() if k not in validated(line)} for line in lines]
    assert trained[1:] == lines_without


def test_the_same_state_gives_the_same_numbers_whatever_the_seed(straight: Any) -> None:
    whole, _, lines = straight
    state = train.build_state(tiny.open_run(whole))
    dev = whole.validation.split(",")[0].removeprefix("dev:")
    run = tiny.open_run(tiny.changed(whole, seed=11, validation=f"again:{dev}"))
    eval_fn = validation.make_eval_fn(run.task, run.mesh)
    for _ in range(2):
        values = validation.measure_set(eval_fn, run.task, state, "again", run.mesh)
        assert {f"dev/{k}": v for k, v in run.task.flatten(values).items()} == {
            name: value for name, value in lines[6].items() if name.startswith("dev/")
        }


def test_stopped_and_resumed_gives_the_same_lines_and_keeps_the_best(
    straight: Any, tmp_path: Path, capsys: Any
) -> None:
    whole, state, lines = straight
    best = next(name for name in worsening(lines) if name.startswith("dev/"))
    config = tiny.changed(whole, workdir=str(tmp_path / "run"), steps=4)
    config.checkpoint.update(every=100, keep=1, best=best)
    tiny.run_to_end(config)
    file = tmp_path / "run" / "metrics.jsonl"
    *kept, last = metrics.read(file)
    assert validated(last)
    last = {name: value for name, value in last.items() if not name.startswith("dev/")}
    file.write_text("".join(json.dumps(line) + "\n" for line in [*kept, last]))  # a line cut short
    config.steps = 6
    resumed_state, resumed_lines = tiny.run_to_end(config)
    jax.tree.map(np.testing.assert_array_equal, state, resumed_state)
    assert resumed_lines == lines
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(int(path.name) for path in folder.iterdir()) == [2, 6]
    output = capsys.readouterr().out
    assert output.count(f"best {best} so far: {lines[2][best]:.4f} after step 2\n") == 1
    assert output.count(f"best: checkpoints/2 with {lines[2][best]:.4f}\n") == 2
    assert spidr_jax.load(tmp_path / "run").step == 6
    assert spidr_jax.load(folder / "2").step == 2


def worsening(lines: list[dict[str, Any]]) -> list[str]:
    """The metrics that are best at step 2 of those after steps 2, 4 and 6."""
    found = []
    for name in validated(lines[0]):
        values = [lines[step][name] for step in (2, 4, 6)]
        values = [-value for value in values] if "loss" not in name else values
        if values[0] < min(values[1:]):
            found.append(name)
    return [name for name in found if "masked" not in name]


@pytest.mark.parametrize("best", ["loss", "dev/masked_frames", "dev/loss/3", "own/lost"])
def test_the_best_in_what_nobody_measures_is_refused(straight: Any, best: str) -> None:
    config = tiny.changed(straight[0], checkpoint={"best": best})
    with pytest.raises(
        ValueError, match=rf"checkpoint\.best = '{best}': allowed .*own/active_codes/2"
    ):
        tiny.open_run(config)
    config.validation = ""
    with pytest.raises(ValueError, match=r"config\.validation, which is empty"):
        tiny.open_run(config)


def test_unreadable_files_end_the_run_by_the_sets_name_but_save_it(
    straight: Any, tmp_path: Path
) -> None:
    dev = tiny.write_corpus(tmp_path / "dev", 9, 1.2)
    changes = {"workdir": str(tmp_path / "run"), "validation": f"dev:{dev}"}
    run = tiny.open_run(tiny.changed(straight[0], **changes))
    state = train.build_state(run)
    for file in (tmp_path / "dev").glob("*.wav"):
        file.unlink()
    writer = Logs(tmp_path, 0, {})
    log = ProgressLog(writer, 6, run.task)
    with (
        closing(writer),
        pytest.raises(pipeline.BadDataError, match=r"config\.validation: dev: .*replacements"),
    ):
        train._validate(
            run, state, 2, log, Stop()
        )  # in a whole run they would have to go while it trains
    run.checkpoints.wait()
    assert run.checkpoints.latest() == 2


# --- on several devices


def measure_everywhere(manifest: Path) -> list[dict[str, float]]:
    """The numbers of a model that has learnt nothing: on 1 device, on 8, with a split teacher."""
    layers = ((16, 10, 5), (16, 8, 64))
    model = ModelConfig(**tiny.SMALLEST | {"extractor_conv_layer_config": layers})
    task = Pretraining(Config(model=model, precision="float32"))
    drawn = jax.jit(task.init_state)(jax.random.key(0))
    limits = LIMITS | {"planned_devices": 8, "max_samples": 18_000}
    found = []
    for number, fsdp in ((1, False), (8, False), (8, True)):
        mesh = Mesh(np.array(jax.devices()[:number]), ("data",))
        (dataset,) = open_sets(f"dev:{manifest}", **limits)
        task.validation = {"dev": audio_of(dataset)}
        shardings = placement.state_shardings(drawn, mesh, fsdp, task.replicated)
        state = jax.device_put(drawn, shardings)
        eval_fn = validation.make_eval_fn(task, mesh)
        flat = task.flatten(validation.measure_set(eval_fn, task, state, "dev", mesh))
        found.append(flat | {"batches": dataset.plan.batches_per_epoch})
    return found


@pytest.mark.slow
def test_the_numbers_are_equal_on_one_and_eight_devices(tmp_path: Path) -> None:
    tiny.write_corpus(tmp_path, 18)
    command = [sys.executable, __file__, str(tmp_path / "manifest.csv")]
    one, eight, split = json.loads(subprocess.check_output(command, env=environment(8)))
    assert one["batches"] == 2
    assert one.keys() == eight.keys() == split.keys()
    for name in one:
        exact = name.startswith(("active", "masked", "batches"))
        for other in (eight, split):
            assert other[name] == pytest.approx(one[name], rel=0 if exact else 1e-6), name


if __name__ == "__main__":
    print(json.dumps(measure_everywhere(Path(sys.argv[1]))))
