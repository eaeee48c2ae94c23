"""A study: its plan, its table by hand, and its runs with real faults."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from spidr_jax.study import __main__ as study
from spidr_jax.study.plan import Study, plan, read_fields, resolve, split
from spidr_jax.study.runs import outcome

CONFIG = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import tiny


def get_config():
    config = tiny.config(Path({manifest!r}), Path("elsewhere"))
    convolutions = ((16, 80, 40), (16, 8, 8))
    config.model.update(extractor_conv_layer_config=convolutions, encoder_pos_conv_depth=1)
    config.update(steps=300, log_every=1, evaluation={evaluation!r}, evaluation_every=0)
    config.checkpoint.every = 100
    return config
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config file of tiny runs of 300 steps with seed 3, evaluated on a set "tones"."""
    folder = tmp_path_factory.mktemp("study")
    manifest = tiny.write_corpus(folder)
    labels = tiny.write_labels(manifest)
    text = CONFIG.format(
        tests=str(Path(__file__).parents[1]),
        manifest=str(manifest),
        evaluation=":".join(map(str, ("tones", manifest, *labels))),
    )
    (folder / "config.py").write_text(text)
    return str(folder / "config.py")


# --- the plan


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.9", ["0.9"]),
        ("0.9,0.99", ["0.9", "0.99"]),
        ("(0.9,0.95),(0.9,0.99)", ["(0.9,0.95)", "(0.9,0.99)"]),
        ("((1,2),(3,4)),((5,6),)", ["((1,2),(3,4))", "((5,6),)"]),
        ("'a:m.csv,b:n.csv',c:o.csv", ["a:m.csv,b:n.csv", "c:o.csv"]),
        ("\"it's\",''", ["it's", ""]),
    ],
)
def test_commas_in_brackets_and_quotes_do_not_split(text: str, values: list[str]) -> None:
    assert split(text) == values


@pytest.mark.parametrize("text", ["", "1,", ",1", "1,,2", "(1,2", "1),2", "'a,b"])
def test_values_that_cannot_be_told_apart_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed are values with commas between"):
        split(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "codebook.decay"], "--vary codebook.decay: allowed is FIELD=VALUE"),
        (["--vary", "codebook.decay="], "'': allowed are values with commas between"),
        (["--set", "=3"], "--set =3: allowed is FIELD=VALUE"),
        (["--vary", "steps=1", "--vary", "steps=2"], "--vary steps=2: the field is given twice"),
        (["--vary", "steps=1", "--set", "steps=2"], "--set steps: --vary says it"),
        (["--vary", "seed=1,2"], "--vary seed=1,2: --seeds says it"),
        (["--set", "workdir=x"], "--set workdir=x: --out says it"),
        (["--seeds", "0"], "--seeds 0: allowed is an integer from 1"),
        (["--vary", "codebook.dec=1"], "codebook.dec=1: 'dec' Did you mean \"decay\""),
        (["--vary", "codebook.decay=0.5,x"], "could not convert string to float: 'x'"),
        (["--vary", "steps=10,-1"], "config.steps = -1: allowed is an integer from 1"),
        (["--vary", "evaluation='','a:b'"], "config.evaluation: 'a:b' is not name:manifest"),
        (["--set", "data.manifest=no.csv"], "config.data.manifest = 'no.csv': there is no such"),
    ],
)
def test_everything_is_checked_before_anything_runs(
    file: str, arguments: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert study.main(["--config", file, "--out", str(tmp_path / "s"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "s").exists()


def test_every_combination_runs_with_every_seed(file: str) -> None:
    vary = {"codebook.decay": ["0.5", "0.9"], "optimizer.betas": ["(0.9,0.95)", "(0.9,0.99)"]}
    found = plan(file, vary, read_fields(["steps=7", "validation="], "--set"), 2, "out")
    assert found.seeds == [3, 4]
    assert len(found.runs) == 8
    assert len({run.name for run in found.runs}) == 8
    run = found.runs[3]
    assert run.setting == {"codebook.decay": "0.5", "optimizer.betas": "(0.9,0.99)"}
    assert (run.seed, run.steps) == (4, 7)
    assert run.name == "codebook.decay=0.5,optimizer.betas=_0.9,0.99_,seed=4"
    flags = [flag.removeprefix("--config.").split("=", 1) for flag in run.command[4:]]
    config = resolve(file, {field: text for field, text in flags})
    assert config.optimizer.betas == (0.9, 0.99)
    assert (config.codebook.decay, config.steps, config.seed) == (0.5, 7, 4)
    assert config.workdir == f"out/{run.name}"
    assert "codebook.decay" not in found.config
    assert found.config["steps"] == 7


def test_folders_have_different_names_that_a_file_system_takes(file: str, tmp_path: Path) -> None:
    long = [f"{tmp_path}/{'x' * 120}{i}" for i in range(2)]
    alike = ["a b", "a/b", "a_b"]
    found = plan(file, {"init_from": [*long, *alike]}, {}, 1, "out")
    names = [run.name for run in found.runs]
    assert names == [
        "setting0,seed=3",
        "setting1,seed=3",
        "init_from=a_b,seed=3",
        "setting3,seed=3",
        "setting4,seed=3",
    ]
    assert [run.name for run in plan(file, {}, {}, 2, "out").runs] == ["seed=3", "seed=4"]


# --- the table


def write_run(folder: Path, lines: list[dict[str, Any]], saved: int) -> None:
    (folder / "checkpoints" / str(saved)).mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def line(step: int, speed: float, loss: float, **more: float) -> dict[str, Any]:
    values = {"loss": loss, "target_ppl": 10 * loss, "active_codes": 6.0}
    return {"step": step, "audio_seconds_per_second": speed} | values | more


def evaluated(pnmi: tuple[float, float], across: tuple[float, float]) -> dict[str, float]:
    values = {"tones/pnmi": pnmi, "tones/abx_across": across, "tones/abx_within": (0.5, 0.4)}
    return {f"{name}/{k}": both[k - 1] for name, both in values.items() for k in (1, 2)}


@pytest.fixture
def told(file: str, tmp_path: Path) -> tuple[Path, Study]:
    """Two settings of two seeds: both runs of the first are finished, one of the second."""
    found = plan(file, {"codebook.decay": ["0.5", "0.9"]}, {}, 2, str(tmp_path))
    last = [
        line(300, 10.0, 2.0, **evaluated((0.1, 0.25), (0.30, 0.40))),
        line(300, 30.0, 2.2, **evaluated((0.3, 0.25), (0.32, 0.28))),
        line(300, 50.0, 1.5, **evaluated((0.1, 0.2), (0.30, 0.20))),
    ]
    for run, values in zip(found.runs, last, strict=False):
        first = [line(i, speed, 9.0) for i, speed in ((1, 1.0), (2, 90.0), (3, 20.0))]
        write_run(tmp_path / run.name, [*first, values], 300)
    write_run(tmp_path / found.runs[3].name, [line(1, 1.0, 9.0), line(200, 20.0, 9.0)], 200)
    return tmp_path, found


def test_the_table_has_means_and_deviations_by_hand(told: tuple[Path, Study]) -> None:
    table = study.write(*told).splitlines()
    # 2.0 and 2.2: mean 2.1, deviation sqrt(2 * 0.1 ** 2 / 1) = 0.1414. Layer 2 is best in PNMI on
    # the mean (0.25 over 0.2), layer 1 across speakers (0.31 under 0.34). Speeds: medians of
    # 90, 20, 10 and of 90, 20, 30.
    *cells, left = (re.split("  +", line.strip()) for line in table)
    assert cells == [
        ["codebook.decay", "n", "loss", "target perplexity", "active codes",
         "tones PNMI", "tones ABX across", "tones ABX within", "audio s/s"],
        ["0.5", "2", "2.100 ±0.141", "21.0 ±1.4", "6.0 ±0.0", "0.250 ±0.000 (layer 2)",
         "31.00 ±1.41 % (layer 1)", "40.00 ±0.00 % (layer 2)", "25 ±7"],
        ["0.9", "1/2", "1.500", "15.0", "6.0", "0.200 (layer 2)",
         "20.00 % (layer 2)", "40.00 % (layer 2)", "50"],
    ]  # fmt: skip
    assert left == ["codebook.decay=0.9,seed=4: after step 200 of 300"]


def test_json_and_csv_hold_every_layer_and_run(told: tuple[Path, Study]) -> None:
    out, found = told
    study.write(out, found)
    assert study.read(out) == found
    first = json.loads((out / "study.json").read_text())["comparison"][0]
    assert first["setting"] == {"codebook.decay": "0.5"}
    assert first["metrics"]["tones/pnmi/1"] == {
        "mean": pytest.approx(0.2),
        "deviation": pytest.approx(0.02**0.5),
        "n": 2,
    }
    rows = list(csv.DictReader((out / "study.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["after step 200 of 300"]
    assert [row["seed"] for row in rows] == ["3", "4", "3", "4"]
    assert [row["tones/abx_across/2"] for row in rows] == ["0.4", "0.28", "0.2", ""]
    assert [row["codebook.decay"] for row in rows] == ["0.5", "0.5", "0.9", "0.9"]


def test_a_run_is_finished_when_nothing_of_it_is_missing(file: str, tmp_path: Path) -> None:
    (run,) = plan(file, {}, {}, 1, str(tmp_path)).runs
    assert outcome(tmp_path, run).status == "not started"
    folder = tmp_path / run.name
    write_run(folder, [line(299, 1.0, 1.0), line(300, 1.0, 1.0)], 200)
    assert outcome(tmp_path, run).status == "after step 300 of 300"  # its end is not saved
    (folder / "checkpoints" / "300").mkdir()
    more = [line(300, 1.0, 1.0, **{"tones/pnmi/2": 0.5}), line(400, 1.0, 7.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in more))
    found = outcome(tmp_path, run)  # somebody has trained longer: the study's step counts
    assert found.finished
    assert (found.values["loss"], found.values["tones/pnmi/2"]) == (1.0, 0.5)


# --- the folder


def test_another_study_in_the_folder_is_refused(file: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "s"
    same = ["--config", file, "--out", str(out), "--commands", "--set", "optimizer.lr=0.001"]
    assert study.main([*same, "--vary", "codebook.decay=0.5,0.9"]) == 0
    for other, message in (
        ([*same, "--vary", "codebook.decay=0.5"], "--vary was {'codebook.decay': ['0.5', '0.9']}"),
        ([*same, "--vary", "codebook.decay=0.5,0.9", "--seeds", "4"], "--seeds was [3, 4, 5] and"),
        (
            [*same[:-1], "optimizer.lr=0.002", "--vary", "codebook.decay=0.5,0.9"],
            "config.optimizer.lr was 0.001 and is 0.002",
        ),
        (
            [*same, "--vary", "codebook.decay=0.5,0.9", "--set", "steps=8"],
            "config.steps was 300 and is 8",
        ),
    ):
        assert study.main(other) == 2
        error = capsys.readouterr().err
        assert f"error: --out {out} holds another study: " in error
        assert message in error


def test_a_folder_of_something_else_is_refused(file: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert study.main(["--config", file, "--out", str(tmp_path)]) == 2
    assert "is not empty and holds no study" in capsys.readouterr().err
    assert study.main(["--out", str(tmp_path)]) == 2
    assert "there is no study.json" in capsys.readouterr().err
    assert study.main(["--out", str(tmp_path), "--commands"]) == 2
    assert "--config is missing" in capsys.readouterr().err
    (tmp_path / "study.json").write_text("{}")
    assert study.main(["--out", str(tmp_path)]) == 2
    assert "study.json: is damaged" in capsys.readouterr().err


def test_commands_are_for_a_shell_and_touch_no_device(file: str, tmp_path: Path) -> None:
    out = tmp_path / "a study"
    line = ["--config", file, "--out", str(out), "--commands", "--vary", "optimizer.betas=(0,0)"]
    program = (
        "import sys\nfrom spidr_jax.study.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *line], check=True, stdout=subprocess.PIPE, text=True
    )
    found = study.read(out)
    assert found is not None
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [
        run.command for run in found.runs
    ]
    assert f"--config.workdir={out}/optimizer.betas=_0,0_,seed=3" in found.runs[0].command


@pytest.mark.slow
def test_the_commands_run_in_a_shell_until_all_are_finished(
    file: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "study"
    command = ["--config", file, "--out", str(out), "--seeds", "1", "--set", "steps=4"]
    command += ["--vary", "init_from='',missing.pt"]

    def commands() -> str:
        capsys.readouterr()
        assert study.main([*command, "--commands"]) == 0
        return str(capsys.readouterr().out)

    done = subprocess.run(["sh"], input=commands(), capture_output=True, text=True)
    assert "error: config.init_from = 'missing.pt': there is no such path" in done.stderr
    assert [shlex.split(line)[-2:] for line in commands().splitlines()] == [
        ["--config.seed=3", f"--config.workdir={out}/init_from=missing.pt,seed=3"]
    ]
    assert study.main(["--out", str(out)]) == 0
    _, good, bad, left = capsys.readouterr().out.splitlines()
    assert good.split()[0] == "1"
    assert bad.split()[:3] == ["missing.pt", "0/1", "-"]
    assert left.startswith("init_from=missing.pt,seed=3: ")
