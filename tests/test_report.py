"""The report of a run: what it shows equals what the run measured, and a browser can show it."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
import tiny
import written_runs
from ml_collections import ConfigDict

import spidr_jax
from spidr_jax import metrics, report, train
from spidr_jax.checkpoint import Checkpoints
from spidr_jax.data import corpus
from spidr_jax.eval import quality
from spidr_jax.eval.alignment import read_alignment
from spidr_jax.report import charts, pictures, reference
from spidr_jax.report.__main__ import main
from spidr_jax.report.scale import Scale, labels, span

SECTIONS = [
    "summary",
    "loss-and-perplexity-per-codebook-training-",
    "codebook-usage",
    "validation",
    "unit-quality-over-steps-and-layers",
    "evaluation-over-layers-abx-pnmi-",
    "phones-and-units",
    "utterances",
    "optimisation",
    "speed",
    "config",
    "environment",
]
TRAINING = SECTIONS[1]
ALLOWED = re.findall(
    r"\w+",
    "html head meta title style body h1 h2 h3 p ul li b small section div table tr th td figure "
    "figcaption details summary svg desc path g text script",
)
VOID = {"meta"}


class Page(HTMLParser):
    """A parsed report: text, rows of tables and charts of each section.

    Raises AssertionError where tags do not close in order, or where one has no business there.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self.rows: dict[str, list[list[str]]] = {"": []}
        self.charts: dict[str, dict[str, dict[str, Any]]] = {"": {}}
        self.described: list[tuple[str, str]] = []
        self.scripts = 0
        self._open: list[str] = []
        self._in = ""
        self._hover: str | None = None
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag in ALLOWED, tag
        assert not [name for name in given if name.startswith("on") or name in ("src", "href")]
        self.scripts += tag == "script"
        if tag not in VOID and not (tag == "path" and "/>" in self.get_starttag_text()):
            self._open.append(tag)
        if tag == "section":
            self._in = str(given["id"])
            self.sections.append(self._in)
            self.text[self._in], self.rows[self._in], self.charts[self._in] = "", [], {}
        elif tag == "tr":
            self.rows[self._in].append([])
        elif tag in ("td", "th"):
            self.rows[self._in][-1].append("")
        elif tag == "svg":
            self._hover = given.get("data-hover")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._in = "" if tag == "section" else self._in

    def handle_data(self, data: str) -> None:
        self.text[self._in] += data
        within = self._open[-1] if self._open else ""
        if within in ("td", "th"):
            self.rows[self._in][-1][-1] += data
        elif within == "title" and self._hover:
            self.charts[self._in][data] = json.loads(self._hover)
        elif within == "desc":
            self.described.append((self._in, data))

    def cell(self, section: str, row: str, column: int = 1) -> str:
        """The cell of the first row of that name."""
        return next(cells[column] for cells in self.rows[section] if cells[0] == row)

    def drawn(self, section: str, title: str, line: int = 0) -> dict[float, float]:
        """Value by step of a line of a chart."""
        _, xs, ys, *_ = self.charts[section][title]["lines"][line]
        return dict(zip(xs, ys, strict=True))


def read(path: Path) -> Page:
    return Page(path.read_text())


def write_alignment(manifest: Path) -> Path:
    """Phones of 120 ms for every utterance, so that its middle has labels A, B, C in turn."""
    path = manifest.with_name("alignment.txt")
    lines = []
    for row in corpus.open_manifest(manifest):
        for i in range(row.num_samples // 1920):
            lines.append(f"{row.fileid} {i * 0.12:.2f} {(i + 1) * 0.12:.2f} {'ABC'[i % 3]}\n")
        lines.append(f"{row.fileid} {row.num_samples // 1920 * 0.12:.2f} "
                     f"{row.num_samples / 16_000:.4f} A\n")  # fmt: skip
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A real run of six steps with an evaluation set."""
    folder = tmp_path_factory.mktemp("real")
    manifest = tiny.write_corpus(folder / "corpus")
    config = tiny.config(manifest, folder / "run")
    config.log_every = 1
    config.evaluation = f"tones:{manifest}:{write_alignment(manifest)}"
    run = train.open_run(config)
    assert train.train(run, train.build_state(run)) == 0
    return config


@pytest.fixture(scope="module")
def speaking(trained: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run after a seventh step, in which its heads have learnt to use many codes."""
    folder = tmp_path_factory.mktemp("speaking") / "run"
    shutil.copytree(trained.workdir, folder)
    run = train.open_run(trained)
    state = jax.device_get(train.build_state(run))
    run.checkpoints.close()
    row = corpus.open_manifest(trained.data.manifest).row(0)
    features = spidr_jax.load(folder).features(soundfile.read(row.path)[0], layer=(1, 2))
    kernel = 1e4 * state.params["heads"]["kernel"]
    heads = {"kernel": kernel, "bias": -np.einsum("kd,kdv->kv", features.mean(1), kernel)}
    state = state._replace(step=np.int32(7), params={**state.params, "heads": heads})
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    position, config = checkpoints.read(6)
    checkpoints.save(7, state, position, config)
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def asked(speaking: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of it with its model."""
    out = tmp_path_factory.mktemp("asked") / "report.html"
    assert main([str(speaking), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs of the published size."""
    folder = tmp_path_factory.mktemp("long")
    return [written_runs.write(folder / f"run{i}", seed=i) for i in range(4)]


# --- a real run


def test_a_run_draws_its_report_at_its_end(trained: ConfigDict) -> None:
    page = read(Path(trained.workdir) / "report.html")
    assert page.sections == SECTIONS
    last = metrics.read(Path(trained.workdir) / "metrics.jsonl")[-1]
    shown = {
        "Mean loss, nats": "loss",
        "Mean target perplexity, codes": "target_ppl",
        "Mean prediction perplexity, codes": "pred_ppl",
        "Mean active codes, codes": "active_codes",
        "Learning rate, per step": "learning_rate",
        "Teacher decay, share kept per step": "teacher_decay",
        "Gradient norm before clipping, L2": "grad_norm",
        "Skipped updates, since the start, updates": "skipped",
        "Bad rows, since the last (re)start, rows": "bad_rows",
        "Speed, s of audio per s": "audio_seconds_per_second",
        "Waiting for data, s since the line before": "data_wait",
    }
    for row, name in shown.items():
        assert float(page.cell("summary", row)) == pytest.approx(last[name], rel=1e-5)
    assert page.cell("summary", "finished steps") == "6"
    for name in ("phones-and-units", "utterances"):
        assert "without --no-model" in page.text[name]
    assert "config.validation" in page.text["validation"]
    assert "spidr_jax.evaluate" in page.text["evaluation-over-layers-abx-pnmi-"]


def test_every_value_of_the_run_is_in_its_charts(trained: ConfigDict) -> None:
    page = read(Path(trained.workdir) / "report.html")
    lines = metrics.read(Path(trained.workdir) / "metrics.jsonl")
    places = {
        "loss_1": (TRAINING, "Layer 1: loss"),
        "target_ppl_2": (TRAINING, "Layer 2: target perplexity"),
        "pred_ppl_1": (TRAINING, "Layer 1: prediction perplexity"),
        "active_2": ("codebook-usage", "Layer 2: active codes"),
        "teacher_decay": ("optimisation", "Teacher decay"),
        "learning_rate": ("optimisation", "Learning rate"),
        "grad_norm": ("optimisation", "Gradient norm before clipping"),
        "audio_seconds_per_second": ("speed", "Speed"),
        "tones_pnmi_2": ("unit-quality-over-steps-and-layers", "Layer 2: PNMI on tones"),
    }
    for name, place in places.items():
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert page.drawn(*place) == pytest.approx(expected, rel=1e-3), name
        assert len(expected) == (2 if "pnmi" in name else 6)
    over_layers = page.drawn(SECTIONS[4], "PNMI on tones, over layers, newest values")
    expected = {k: lines[-1][f"tones_pnmi_{k}"] for k in (1, 2)}
    assert over_layers == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def pairs(trained: ConfigDict, speaking: Path) -> dict[int, dict[str, Any]]:
    """By layer, phones and units of every utterance, each alone."""
    manifest = trained.data.manifest
    phones = read_alignment(Path(manifest).with_name("alignment.txt"))
    model = spidr_jax.load(speaking)
    waves = {row.fileid: soundfile.read(row.path)[0] for row in corpus.open_manifest(manifest)}
    units = {name: model.units(wave, layer=(1, 2)) for name, wave in waves.items()}
    return {k: {name: (phones[name], units[name][k - 1]) for name in waves} for k in (1, 2)}


def test_the_model_is_shown_on_its_evaluation_set(pairs: Any, asked: Path) -> None:
    page = read(asked)
    measured = {layer: quality.units_quality(pairs[layer], 8) for layer in (1, 2)}
    for layer, expected in measured.items():
        row = [float(page.cell("phones-and-units", str(layer), i)) for i in range(1, 7)]
        assert row == pytest.approx(list(expected), rel=1e-3)
        assert expected.active_codes >= 4
    best = max((1, 2), key=lambda layer: measured[layer].pnmi)
    text = page.text["phones-and-units"]
    assert f"layer {best} after step 7 on 14 of the 14 utterances of tones" in text
    # the units beside the first utterance are those that the model gives it
    units = pairs[best]["u00"][1].tolist()
    once = [str(u) for i, u in enumerate(units) if i == 0 or units[i - 1] != u]
    described = [text for where, text in page.described if where == "utterances"]
    assert described[0] == f"phones: A B C A B C A; units: {' '.join(once)}"


def test_the_matrix_has_the_specs_order(pairs: Any, asked: Path) -> None:
    page = read(asked)
    rows = [cells for cells in page.rows["phones-and-units"] if cells[0] in ("A", "B", "C")]
    layer = int(re.search(r"of layer (\d)", page.text["phones-and-units"])[1])
    counts = np.zeros((3, 8))  # with each unit of 20 ms the two phones of 10 ms in it
    for phones, units in pairs[layer].values():
        for i, unit in enumerate(units):
            for phone in phones[2 * i : 2 * i + 2]:
                counts["ABC".index(phone), unit] += 1
    frequent = np.argsort(-counts.sum(1))
    assert [cells[0] for cells in rows] == ["ABC"[i] for i in frequent]
    given = counts / np.maximum(counts.sum(0), 1)
    for i, (_, text) in zip(frequent, rows, strict=True):
        mine = [u for u in range(8) if counts[:, u].any() and given[:, u].argmax() == i]
        mine.sort(key=lambda u: -given[i, u])
        assert text == ", ".join(f"{u} ({given[i, u]:.2f})" for u in mine)


def test_the_matrix_is_drawn_cell_by_cell() -> None:
    probability = np.array([[1.0, 0.5, 0.004], [0.0, 0.5, 0.996]])
    svg = pictures.matrix_svg(quality.PhoneUnitMatrix(probability, ["A", "<"], np.array([7, 3, 5])))
    shades = {float(o): d.count("M") for o, d in re.findall(r'opacity="([^"]*)" d="([^"]*)"', svg)}
    assert shades == {0.05: 1, 0.5: 2, 1: 2}  # 0.004 is seen, 0 is not
    assert re.findall(r">([^<]+)</text>", svg) == ["A", "&lt;", "7", "3", "5"]


def test_versions_lie_with_the_checkpoint(trained: ConfigDict) -> None:
    page = read(Path(trained.workdir) / "report.html")
    assert page.cell("environment", "versions.jax") == jax.__version__
    assert page.cell("environment", "newest checkpoint") == "6"


def test_another_layer_can_be_asked_for(trained: ConfigDict, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "report.html"
    assert main([trained.workdir, "--layer", "7", "--out", str(out)]) == 0
    assert "--layer 7: allowed are 1, 2" in capsys.readouterr().err
    assert "--layer 7: allowed are 1, 2" in read(out).text["phones-and-units"]


def test_a_report_that_fails_does_not_fail_the_run(
    trained: ConfigDict, tmp_path: Path, capsys: Any
) -> None:
    config = ConfigDict(trained.to_dict())
    config.workdir = str(tmp_path / "run")
    shutil.copytree(trained.workdir, config.workdir, ignore=lambda *_: ["report.html"])
    (tmp_path / "run" / "report.html").mkdir()
    run = train.open_run(config)  # it is finished: only its end is left
    assert train.train(run, train.build_state(run)) == 0
    warnings = [w for w in capsys.readouterr().out.splitlines() if w.startswith("warning")]
    assert len(warnings) == 1
    assert "no report" in warnings[0]
    assert "report.html" in warnings[0]


# --- long runs, several runs


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
    assert len(reference.series("loss_11", 400_000)) == 161
    assert reference.series("loss_11", 400_000)[-1] == (400_000, 1.279)
    assert reference.series("loss_4", 400_000) == []


def test_evaluation_files_are_shown_over_layers_with_the_mfcc_floor(tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=5)
    results: list[dict[str, Any]] = [
        {"layer": k, "kind": "units", "pnmi": 0.1 * k, "abx_within": 0.2 / k, "new": None}
        for k in (5, 6, 7)
    ]
    results += [{"layer": "MFCC", "kind": "kmeans", "pnmi": 0.447}]
    content = {"step": 9, "seed": 0, "results": results}
    (run / "evaluate-dev.json").write_text(json.dumps(content))
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


def test_a_folder_with_metrics_alone_has_every_section(trained: ConfigDict, tmp_path: Path) -> None:
    shutil.copy(Path(trained.workdir) / "metrics.jsonl", tmp_path)
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
    names = {"loss": 1.0, f"{evil}_loss_5": 2.0, f"{evil}_loss": 3.0, f"{evil}_pnmi_5": 0.5}
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


def test_nothing_is_loaded_from_outside(asked: Path) -> None:
    html = asked.read_text()
    assert not re.search(r"https?:|//\w|url\(|@import|\bsrc=|\bhref=|fetch\(|import\(", html)
    assert "default-src 'none'" in html


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


# --- in a browser

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), None)
MEASURE = """<script>
addEventListener("load", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  const out = { width: innerWidth, page: document.documentElement.scrollWidth, cut: [], over: [] };
  out.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const colour = (element, name) => getComputedStyle(element)[name];
  out.paper = colour(document.body, "backgroundColor");
  out.ink = ["p", "td", "svg text", "summary"].map((s) => {
    const e = document.querySelector(s);
    return colour(e, s === "svg text" ? "fill" : "color");
  });
  const lines = [...document.querySelectorAll("figure g .l")];
  out.lines = [...new Set(lines.map((e) => colour(e, "stroke")))];
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map((t) => [t, t.getBoundingClientRect()]);
    for (const [t, b] of texts) {
      if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1
          || b.top < frame.top - 1) out.cut.push(t.textContent);
    }
    if (!svg.dataset.hover) continue;
    const axis = texts.filter(([t]) => !t.classList.contains("end"));
    axis.forEach(([t, a], i) => axis.slice(i + 1).forEach(([u, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 4) out.over.push(`${t.textContent} | ${u.textContent}`);
    }));
  }
  const svg = document.querySelector("svg[data-hover]");
  const frame = svg.getBoundingClientRect();
  const data = JSON.parse(svg.dataset.hover);
  const x = frame.left + (data.box[1] / 340) * frame.width;
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: frame.top + 50 }));
  out.readout = svg.parentElement.querySelector(".readout").textContent;
  parent.postMessage(JSON.stringify(out), "*");
});
</script>"""
# A window is 500 wide at least, a frame in it may be narrower.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe style="border: 0" width="WIDTH" height="1500" src="measured.html"></iframe><script>
addEventListener("message", (event) => {
  const pre = document.createElement("pre");
  pre.id = "measured";
  pre.textContent = event.data;
  document.body.append(pre);
});
</script>"""


def look(page: Path, width: int, dark: bool, *what: str) -> str:
    """Start a browser on a page; give its output."""
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},1600"]
    if dark:
        command += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
    done = subprocess.run(
        [*command, *what, page.as_uri()], check=True, timeout=120, capture_output=True, text=True
    )
    return done.stdout


def contrast(first: str, second: str) -> float:
    """Of two colours "rgb(r, g, b)", as WCAG 2 defines it: 1 to 21."""

    def luminance(text: str) -> float:
        share = np.array([int(part) for part in re.findall(r"\d+", text)[:3]]) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def shown(speaking: Path, long_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that there can be: a real run with its model, and long ones."""
    folder = tmp_path_factory.mktemp("shown")
    real = shutil.copytree(speaking, folder / "real run")
    results = [{"layer": k, "kind": "units", "pnmi": 0.1 * k} for k in (1, 2)]
    (real / "evaluate.json").write_text(json.dumps({"step": 7, "results": results}))
    report.write([real, *long_runs[:2]], folder / "report.html")
    html = (folder / "report.html").read_text()
    (folder / "measured.html").write_text(html.replace("</body>", f"{MEASURE}</body>"))
    return folder


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize(
    ("width", "dark"), [(1400, False), (1400, True), (400, False), (400, True)]
)
def test_it_is_readable_in_a_browser(shown: Path, width: int, dark: bool) -> None:
    frame = shown / f"frame-{width}.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    dom = look(frame, 1500, dark, "--dump-dom")
    text = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert text
    found = json.loads(unescape(text[1]))
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["page"] <= width  # the page itself does not scroll sideways
    assert found["cut"] == []
    assert found["over"] == []
    assert all(contrast(ink, found["paper"]) >= 4.5 for ink in found["ink"])
    assert len(found["lines"]) == 3  # a colour for each run
    assert all(contrast(line, found["paper"]) >= 3 for line in found["lines"])
    assert (contrast(found["paper"], "rgb(255, 255, 255)") > 15) == dark
    assert re.match(r"A [\d.]+ at 6; B [\d.]+ \([\d.]+ to [\d.]+\) at 39\d{4}", found["readout"])


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_it_can_be_photographed(shown: Path, width: int, dark: bool) -> None:
    picture = shown / f"{width}.png"
    look(shown / "report.html", width, dark, f"--screenshot={picture}")
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == width
    assert len(content) > 40_000  # of a blank page of that size: 10,000
