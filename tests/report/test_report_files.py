"""Reports of run folders as they may be: long, several, of other models, bare, hostile."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import written_runs
from report_page import SECTIONS, TRAINING, read

from spidr_jax import report
from spidr_jax.report import charts, reference
from spidr_jax.report.__main__ import main
from spidr_jax.report.scale import Scale, labels, span


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs of the published size."""
    folder = tmp_path_factory.mktemp("long")
    return [written_runs.write(folder / f"run{i}", seed=i) for i in range(4)]


def test_four_long_runs_stay_small_and_keep_every_peak(
    long_runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    assert report.write(long_runs, out, with_model=False) == []
    assert out.stat().st_size < 5e6
    page = read(out)
    chart = page.charts["optimisation"]["Gradient norm before clipping"]
    for name, steps, means, lows, highs in chart["lines"]:
        assert name in "ABCD"
        assert len(steps) == charts.STRETCHES
        assert highs.count(50.0) == 20  # each 100th of 2,000 lines
        assert all(low < mean < high for low, mean, high in zip(lows, means, highs, strict=True))


def test_runs_differ_in_colour_dash_and_letter(long_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    report.write(long_runs[:3], out, with_model=False)
    html = out.read_text()
    for letter, classes in zip("ABC", ("c0 d0", "c1 d1", "c2 d2"), strict=True):
        assert f'<g class="{classes}">' in html
        assert re.search(f'<text class="end {classes}"[^>]*>{letter}</text>', html)
    fields = [cells[0] for cells in read(out).rows["config"]]
    every = fields.index("field", 1)
    assert sorted(fields[1:every]) == ["seed", "workdir"]
    assert "steps" in fields[every:]


def test_the_published_curve_is_drawn_beside_validation_only(
    long_runs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    report.write(long_runs[:1], out, with_model=False)
    page = read(out)
    chart = page.charts["validation"]["Layer 6: loss on dev"]
    assert [line[0] for line in chart["lines"]] == ["ref", "A"]
    published = page.drawn("validation", "Layer 6: loss on dev")
    assert published[2_500] == 2.534  # as the file has it
    assert published[400_000] == 0.925
    assert "arXiv 2512.20308" in page.text["validation"]
    for title, other in page.charts[TRAINING].items():
        assert [line[0] for line in other["lines"]] == ["A"], title


def test_the_published_curve_ends_with_the_run(tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=20, steps=20_000)
    report.write([run], tmp_path / "report.html", with_model=False)
    page = read(tmp_path / "report.html")
    published = page.drawn("validation", "Layer 5: target perplexity on dev")
    assert list(published) == [2_500 * i for i in range(9)]
    assert max(page.charts["validation"]["Layer 5: loss on dev"]["x"]) == 20_000


@pytest.mark.parametrize("field", ["codebook_size", "encoder_num_layers", "num_codebooks"])
def test_the_published_curve_is_not_drawn_beside_another_model(field: str, tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=20, steps=20_000)
    config = json.loads((run / "config.json").read_text())
    config["model"][field] = 6
    (run / "config.json").write_text(json.dumps(config))
    report.write([run], tmp_path / "report.html", with_model=False)
    page = read(tmp_path / "report.html")
    assert [line[0] for line in page.charts["validation"]["Layer 6: loss on dev"]["lines"]] == ["A"]
    assert f"config.model.{field} is 6, not" in page.text["validation"]


def test_a_smaller_batch_than_the_published_is_said(tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=20)
    config = json.loads((run / "config.json").read_text())
    config["data"]["planned_devices"] = 4
    (run / "config.json").write_text(json.dumps(config))
    report.write([run], tmp_path / "report.html", with_model=False)
    text = read(tmp_path / "report.html").text["validation"]
    assert "A step of run is 950 s of audio at most, of the published run 3,800 s." in text


def test_the_published_curve_is_the_file() -> None:
    assert len(reference.series("loss/11", 400_000)) == 161
    assert reference.series("loss/11", 400_000)[-1] == (400_000, 1.279)
    assert reference.series("loss/4", 400_000) == []


def test_evaluation_files_are_shown_over_layers_with_the_mfcc_floor(tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=5)
    results: list[dict[str, Any]] = [
        {"layer": k, "kind": "units", "pnmi": 0.1 * k, "abx_within": 0.2 / k, "new": None}
        for k in (5, 6, 7)
    ]
    results += [{"layer": "MFCC", "kind": "kmeans", "pnmi": 0.447}]
    content = {"step": 9, "seed": 0, "results": results}
    (run / "evaluate-dev.json").write_text(json.dumps(content))
    results += [{"layer": ["x"], "pnmi": 1.0}, "x"]  # type: ignore[list-item]
    (run / "evaluate-other.json").write_text("[1]")
    report.write([run], tmp_path / "report.html", with_model=False)
    page = read(tmp_path / "report.html")
    section = SECTIONS[5]
    assert page.drawn(section, "PNMI of units", 0) == {5: 0.447, 6: 0.447, 7: 0.447}
    assert page.drawn(section, "PNMI of units", 1) == pytest.approx({5: 0.5, 6: 0.6, 7: 0.7})
    assert page.cell(section, "layer 5 units: ABX within") == "0.04"
    assert page.cell(section, "MFCC kmeans: PNMI") == "0.447"
    assert page.cell(section, "after step") == "9"
    assert "evaluate-other.json holds no `results`" in page.text[section]


# --- what a folder may lack, and what it may hold


def test_a_folder_with_metrics_alone_has_every_section(tmp_path: Path) -> None:
    (written_runs.write(tmp_path / "run", lines=5) / "metrics.jsonl").rename(
        tmp_path / "metrics.jsonl"
    )
    out = tmp_path / "report.html"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    page = read(out)
    assert page.sections == SECTIONS
    assert page.cell("summary", "config.steps") == "not known"
    assert "no config.json" in page.text["config"]
    assert "config.evaluation is empty" in page.text["phones-and-units"]


def test_a_run_without_a_step_yet_has_every_section(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    report.write([tmp_path], tmp_path / "report.html", with_model=False)
    page = read(tmp_path / "report.html")
    assert page.sections == SECTIONS
    assert "no metrics.jsonl with training steps" in page.text[TRAINING]
    assert "config.validation" in page.text["validation"]
    assert not any(page.charts.values())


def test_a_cut_line_and_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    values = [4.0, None, 3.0, 2.0]
    lines = [json.dumps({"step": i, "loss": v, "grad_norm": 0}) for i, v in enumerate(values)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    report.write([tmp_path], tmp_path / "report.html", with_model=False)
    page = read(tmp_path / "report.html")
    assert page.drawn(TRAINING, "Mean loss") == {0: 4, 1: None, 2: 3, 3: 2}
    assert page.cell("summary", "Mean loss, nats") == "2"
    assert "1 values in metrics.jsonl were not finite" in page.text["summary"]
    assert "Gradient norm before clipping" not in page.charts["optimisation"]  # no log of 0
    html = (tmp_path / "report.html").read_text()
    assert re.search(r'd="M[\d.]+ [\d.]+M[\d.]+ [\d.]+L[\d.]+ [\d.]+"', html)


def test_hostile_names_and_values_are_only_text(tmp_path: Path) -> None:
    evil = """<img src=x onerror=alert(1)>&amp;"'"""
    run = tmp_path / evil
    run.mkdir()
    names = {"loss": 1.0, f"{evil}/loss/5": 2.0, f"{evil}/loss": 3.0, f"{evil}/pnmi/5": 0.5}
    lines = [json.dumps({"step": step, **names}) for step in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    config = {"workdir": "</script><script>alert(2)</script>", evil: evil, "evaluation": evil}
    (run / "config.json").write_text(json.dumps(config))
    results = [{"layer": 5, "kind": evil, "pnmi": 1.0}, {"layer": evil, "kind": evil, "pnmi": 1.0}]
    (run / "evaluate.json").write_text(json.dumps({"step": evil, "results": results}))
    out = tmp_path / "report.html"
    assert main([str(run), str(tmp_path / evil), "--out", str(out)]) == 0
    page = read(out)  # knows all tags and attributes that may be there
    assert page.scripts == 1
    assert page.cell("config", "workdir") == config["workdir"]
    assert evil in page.text["validation"]
    assert f"Layer 5: loss on {evil}" in page.charts["validation"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no such folder"),
        ({}, "is no run's folder: it has no metrics.jsonl, config.json or checkpoints"),
        ({"config.json": "{"}, r"config\.json: is damaged"),
        ({"metrics.jsonl": "", "evaluate.json": "{"}, r"evaluate\.json: is damaged"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(
    files: dict[str, str] | None, message: str, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    assert main([str(run), "--out", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: .*run.*{message}", line)
    assert not (tmp_path / "report.html").exists()


# --- axes and lines by hand


def test_scales_and_their_ticks() -> None:
    assert Scale(0, 10, 100, 200)(2.5) == 125
    assert Scale(1, 100, 170, 10, log=True)(10) == pytest.approx(90)
    assert Scale(0, 1, 0, 1).ticks(5) == [
        (pytest.approx(v / 10), f"{v / 10:.1f}") for v in range(0, 11, 2)
    ]
    assert [label for _, label in Scale(0, 2, 0, 1).ticks(5, whole=True)] == ["0", "1", "2"]
    assert [label for _, label in Scale(0.5, 60, 0, 1, log=True).ticks(5)] == (
        ["0.5", "1", "2", "5", "10", "20", "50"]
    )
    assert [v for v, _ in Scale(2.1, 2.6, 0, 1, log=True).ticks(5)] == (
        pytest.approx([2.1, 2.2, 2.3, 2.4, 2.5, 2.6])
    )
    assert labels([0, 2e-4, 4e-4], 2e-4) == ["0", "2e-4", "4e-4"]
    assert labels([0.999, 0.9995], 5e-4) == ["0.9990", "0.9995"]
    assert labels([0, 200_000, 400_000], 200_000) == ["0", "200,000", "400,000"]


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-2.0, 5.0], [0.999, 0.9991], [1e-9, 2e-9]])
def test_axes_hold_all_values_and_have_ticks(values: list[float]) -> None:
    low, high = span(values)
    assert low <= min(values) <= max(values) < high
    ticks = Scale(low, high, 0, 1).ticks(5)
    assert len(ticks) >= 2
    assert len({label for _, label in ticks}) == len(ticks)
    assert all(float(label.replace(",", "")) == pytest.approx(value) for value, label in ticks)


def test_stretches_have_mean_lowest_highest_and_gaps() -> None:
    points = [(float(i), float(i % 4)) for i in range(charts.STRETCHES * 4)]
    places = charts.thin(points)
    assert places[1] == charts.Place(5.5, 1.5, 0.0, 3.0)
    assert len(places) == charts.STRETCHES
    gap = [(x, None if x == 5 else y) for x, y in points]
    assert charts.thin(gap)[1] == charts.Place(5.5, None, 0.0, 3.0)
    assert charts.thin(points[:300]) == [charts.Place(x, y) for x, y in points[:300]]
