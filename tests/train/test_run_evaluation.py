"""Evaluation while a run trains: its numbers, its cadence, its faults."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from spidr_jax import evaluate
from spidr_jax.data.pipeline import BadDataError
from spidr_jax.inference.datasets import open_sets, parse_sets
from spidr_jax.train import loop as train
from spidr_jax.train import metrics
from spidr_jax.train.evaluation import Evaluations

pytestmark = pytest.mark.usefixtures("compiled_once")
UNITS = ("pnmi", "phone_purity", "cluster_purity", "codebook_perplexity", "bitrate")
ABX = ("abx_within", "abx_across")


@pytest.fixture(scope="module")
def files(manifest: Path) -> tuple[Path, Path, Path]:
    """Manifest, alignment and ABX items."""
    return manifest, *tiny.write_labels(manifest)


# --- what is to be measured


@pytest.mark.parametrize(
    "text", ["a", "a:m", ":m:al", "a:m:", "a:m::", "a b:m:al", "a::al", "a:m:al:it:x", "a:m:al::x"]
)
def test_bad_specs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.evaluation: '.*' is not name:manifest:align"):
        parse_sets(text)


def test_specs_may_leave_out_phones_or_items() -> None:
    found = [tuple(spec) for spec in parse_sets("a:m:al, b:m:al:it,c:m::it,")]
    expected = [("a", "m", "al", None), ("b", "m", "al", "it"), ("c", "m", None, "it")]
    assert found == expected
    with pytest.raises(ValueError, match="the name 'a' is given twice"):
        parse_sets("a:m:al,a:n:al")


def test_a_missing_file_is_named_with_its_set(files: Any) -> None:
    manifest, alignment, _ = files
    for text, name in ((f"a:{manifest}:no.txt", "no.txt"), (f"a:no.csv:{alignment}", "no.csv")):
        with pytest.raises(FileNotFoundError, match=rf"config\.evaluation: a: {name}: there is no"):
            open_sets(text)
    short = manifest.with_name("short.txt")
    short.write_text("u00 0 0.5 A\n")
    with pytest.raises(ValueError, match=r"config\.evaluation: a: .* no phones of 'u01'"):
        open_sets(f"a:{manifest}:{short}")


# --- when


def test_cadence_start_and_end(files: Any, tmp_path: Path) -> None:
    config = tiny.config(files[0], tmp_path)
    config.update(steps=100, evaluation=f"tones:{files[0]}:{files[1]}")
    for every, expected in ((30, [0, 30, 60, 90, 100]), (0, [0, 100])):
        config.evaluation_every = every
        evaluations = tiny.open_run(config).evaluations
        assert [step for step in range(101) if evaluations.due(step)] == expected


# --- in a run


@pytest.fixture(scope="module")
def straight(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run of six steps, evaluated every other one, and what it compiled."""
    manifest, alignment, items = files
    config = tiny.config(manifest, tmp_path_factory.mktemp("straight") / "run")
    convolutions = ((16, 80, 40), (16, 8, 8))
    config.model.update(extractor_conv_layer_config=convolutions, encoder_pos_conv_depth=1)
    config.update(log_every=1, evaluation_every=2)
    config.evaluation = f"tones:{manifest}:{alignment}:{items},flat:{manifest}::{items}"
    config.optimizer.update(lr=0.05, warmup_steps=2)  # so that the numbers move
    compiled: list[int] = []
    measure = Evaluations.measure
    counted = [0]

    def count(name: str, *_: Any, **__: Any) -> None:
        counted[0] += name == "/jax/core/compile/backend_compile_duration"

    def watched(self: Evaluations, *args: Any) -> None:
        before = counted[0]
        measure(self, *args)
        compiled.append(counted[0] - before)

    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluations, "measure", watched)
        state, lines = tiny.run_to_end(config)
    return config, state, lines, compiled


def evaluated(line: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in line.items() if name.startswith(("tones/", "flat/"))}


def test_every_set_is_measured_at_its_cadence(straight: Any) -> None:
    lines = straight[2]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    promised = {f"tones/{name}/{k}" for name in (*UNITS, *ABX) for k in (1, 2)}
    promised |= {f"flat/abx_{name}/{k}" for name in ("within", "across") for k in (1, 2)}
    for line in lines:
        assert evaluated(line).keys() == (promised if line["step"] % 2 == 0 else set())
        assert ("loss" in line) == (line["step"] > 0)
    moved = {name for name in promised if lines[0][name] != lines[6][name]}
    assert moved >= {"tones/abx_across/2", "flat/abx_within/1"}


def test_only_the_first_evaluation_compiles(straight: Any) -> None:
    compiled = straight[3]
    assert len(compiled) == 4
    assert compiled[0] > 0
    assert compiled[1:] == [0, 0, 0]


def test_the_numbers_are_those_of_the_evaluation_command(
    straight: Any, files: Any, tmp_path: Path
) -> None:
    config, _, lines, _ = straight
    manifest, alignment, items = map(str, files)
    out = tmp_path / "e.json"
    line = ["--checkpoint", config.workdir, "--manifest", manifest, "--alignment", alignment]
    line += ["--item", items, "--kinds", "codebooks,units", "--out", str(out)]
    line += ["--max-size-group", "10", "--max-x-across", "5", "--batch-seconds", "40"]
    assert evaluate.main(line) == 0
    found = {}
    for row in json.loads(out.read_text())["results"]:
        wanted = UNITS if row["kind"] == "units" else ABX
        found |= {f"tones/{name}/{row['layer']}": row[name] for name in wanted}
    assert len(found) == 14
    assert {name: lines[-1][name] for name in found} == pytest.approx(found, abs=5e-3)


def test_evaluation_changes_nothing_of_the_run(straight: Any, tmp_path: Path) -> None:
    with_it, state, lines, _ = straight
    config = tiny.changed(with_it, workdir=str(tmp_path / "run"), evaluation="")
    state_without, lines_without = tiny.run_to_end(config)
    jax.tree.map(np.testing.assert_array_equal, state, state_without)
    trained = [{k: v for k, v in line.items() if k not in evaluated(line)} for line in lines]
    assert trained[1:] == lines_without


def test_killed_between_save_and_evaluation_and_resumed_gives_the_same_lines(
    straight: Any, tmp_path: Path
) -> None:
    whole, state, lines, _ = straight
    config = tiny.changed(whole, workdir=str(tmp_path / "run"), steps=4)
    tiny.run_to_end(config)
    file = tmp_path / "run" / "metrics.jsonl"
    *kept, last = metrics.read(file)
    cut = {name: v for name, v in last.items() if not name.startswith("flat/")}  # after one set
    file.write_text("".join(json.dumps(line) + "\n" for line in [*kept, cut]))
    config.steps = 6
    resumed_state, resumed_lines = tiny.run_to_end(config)
    jax.tree.map(np.testing.assert_array_equal, state, resumed_state)
    assert resumed_lines == lines


def test_a_set_that_cannot_be_measured_ends_no_run_that_trains(
    straight: Any, tmp_path: Path, capsys: Any
) -> None:
    manifest = tiny.write_corpus(tmp_path / "other", 9)
    gone = f"gone:{manifest}:{tiny.write_labels(manifest)[0]}"
    config = tiny.changed(straight[0], workdir=str(tmp_path / "run"), evaluation=gone)
    run = tiny.open_run(config)
    state = train.build_state(run)
    (tmp_path / "other" / "u03.wav").unlink()
    with pytest.raises(BadDataError, match=r"config\.evaluation: gone: .*u03"):
        train.train(run, state)
    soon = [{"step": 0, "gone/pnmi/2": 0.0}]  # as if it had gone after the start
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(soon[0]) + "\n")
    _, lines = tiny.run_to_end(config)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    warnings = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning: config")]
    assert len(warnings) == 3
    assert all("u03.wav" in warning for warning in warnings)
