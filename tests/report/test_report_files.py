"""Reports of run folders as they may be: learning, collapsed, long, several, bare, hostile."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import written_runs

from spidr_jax import report
from spidr_jax.eval import quality
from spidr_jax.report import curves, reference
from spidr_jax.report.__main__ import main
from spidr_jax.report.page import page, write
from spidr_jax.report.runs import read_runs
from spidr_jax.report.units import Probe

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def drawn(*runs: Path) -> str:
    """The page of some runs from their files alone."""
    out = runs[0].parent / "report.html"
    assert write(runs, out, with_model=False) == []
    return out.read_text()


def table(html: str) -> dict[str, list[str]]:
    """The cells of all tables' rows by their first one."""
    rows = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    return {row[0]: [unescape(cell) for cell in row[1:]] for row in rows}


def hand_made(folder: Path, values: Callable[[int], dict[str, Any]], codes: int = 256) -> Path:
    """A run of 20 lines that hold what `values` gives of each one's number."""
    folder.mkdir()
    lines = [{"step": 100 * i, **values(i)} for i in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"model": {"codebook_size": codes}}))
    return folder


# --- the sentence


def learning(i: int) -> dict[str, Any]:
    use = {"target_ppl": 150.0 + i, "pred_ppl": 160.0, "active_codes": 201.0, "skipped": 0}
    return {"loss": 5.5 - 0.1 * i} | {f"target_ppl/{k}": 170.0 for k in (5, 6)} | use


@pytest.mark.parametrize(
    ("changed", "mood", "sentence"),
    [
        (
            lambda i: {"skipped": 3},
            "good",
            "Learning: loss fell from 5.4 to 3.6 nats and still decreases; of 256 codes: target "
            "perplexity 170, prediction perplexity 160, active 201; 3 updates were not finite and "
            "were left out.",
        ),
        (
            lambda i: {"target_ppl/5": 100 / i, "target_ppl/6": 20 / i, "target_ppl": 60 / i},
            "bad",
            "Collapsed: target perplexity fell to 3 of 256 codes in all codebooks (mean at step "
            "100: 60); a falling loss is no good sign.",
        ),
        (
            lambda i: {"target_ppl/6": 25.0},
            "bad",
            "Collapsing: target perplexity fell to 25 of 256",
        ),
        (
            lambda i: {"loss": 5.0 if i < 9 else None, "skipped": max(i - 8, 0)},
            "bad",
            "Not finite: no loss is a number after step 800; 12 updates were not finite and were",
        ),
        (lambda i: {"loss": math.log(256)}, "unsure", "Not learning yet: the loss, 5.55 nats, is"),
        (lambda i: {"loss": 2.0 + i}, "unsure", "Not learning yet"),
        (
            lambda i: {"loss": abs(i - 15) / 10 + 1},
            "good",
            "2.4 to 1.4 nats, now increasing; of 256",
        ),
    ],
)
def test_the_first_sentence_says_whether_it_learns(
    changed: Callable[[int], dict[str, Any]], mood: str, sentence: str, tmp_path: Path
) -> None:
    run = hand_made(tmp_path / "run", lambda i: learning(i) | changed(i))
    (said,) = re.findall(rf'<p class="verdict {mood}">(.*?)<br>', drawn(run))
    assert sentence in unescape(re.sub("<.*?>", "", said))


def test_the_first_sentence_tells_unit_quality_beside_mfcc(tmp_path: Path) -> None:
    run = hand_made(
        tmp_path / "run",
        lambda i: learning(i) | {"dev/pnmi/5": 0.01 * i, "dev/pnmi/6": 0.02 * i, "dev/abx/5": 0.5},
    )
    results = [
        {"layer": 5, "kind": "units", "pnmi": 0.31, "abx_within": 0.04},
        {"layer": "MFCC", "kind": "kmeans", "pnmi": 0.45, "bitrate": None},
    ]
    (run / "evaluate-dev.json").write_text(json.dumps({"step": 9, "results": results}))
    (run / "evaluate-other.json").write_text("[1]")
    html = drawn(run)
    assert "; PNMI on dev 0.4 (layer 6; at first 0.02; MFCC: 0.45)." in html
    assert ">MFCC</text>" in html
    assert "<th>kind</th><th>PNMI</th><th>ABX within</th></tr>" in html
    assert (
        "<td>evaluate-dev.json</td><td>9</td><td>5</td><td>units</td><td>0.310</td><td>4.00 %</td>"
        in html
    )


# --- what it shows


def test_every_metric_is_on_the_page(tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=30)
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    values = dict(pair for line in lines for pair in line.items()) | {"dev/new_one/7": 0.25}
    lines += [{"step": 500_000, "dev/new_one/7": 0.5}, {"step": 500_001, "dev/new_one/7": 0.25}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    html = drawn(run)
    cells = table(html)
    del values["step"]
    assert {name: float(cells[name][1]) for name in values} == pytest.approx(values, rel=1e-5)
    assert "<figcaption>new one (dev)</figcaption>" in html  # unknown to the registry
    assert "<figcaption>PNMI, share of H(phone) (dev)</figcaption>" in html
    assert "skipped updates, since the start, updates (training)" not in html  # never changes


def test_three_long_runs_stay_small(tmp_path: Path) -> None:
    html = drawn(*(written_runs.write(tmp_path / f"run{i}", seed=i) for i in range(3)))
    assert len(html) < 2e6
    assert html.count('class="verdict good"') == 3
    assert ">C</text>" in html
    assert "The runs differ in the first 2." in html
    assert "<td>seed</td><td>0</td><td>1</td><td>2</td>" in html


def test_of_many_points_each_stretch_has_mean_lowest_and_highest() -> None:
    points = [(float(i), float(i % 4)) for i in range(600)]
    assert curves.thin(points)[1].tolist() == [5.5, 1.5, 0, 3]
    gap = [(x, None if x == 5 else y) for x, y in points]
    x, mean, low, high = curves.thin(gap)[1].tolist()
    assert math.isnan(mean)
    assert (x, low, high) == (5.5, 0, 3)
    assert curves.thin(points[:300])[:, 1].tolist() == [y for _, y in points[:300]]


def test_the_published_curve_is_the_mean_over_codebooks() -> None:
    curve = dict(reference.mean("loss"))
    assert len(curve) == 161
    every = 2.592, 2.534, 2.606, 2.66, 2.671, 2.774, 2.713, 2.868
    assert curve[2_500] == pytest.approx(sum(every) / 8)
    assert curve[0] == pytest.approx(math.log(256), abs=0.06)


def test_the_published_curve_is_drawn_beside_its_own_model_only(tmp_path: Path) -> None:
    run = written_runs.write(tmp_path / "run", lines=20)
    html = drawn(run)
    assert ">published</text>" in html
    assert "Grey: the published run on dev-clean." in html
    config = json.loads((run / "config.json").read_text())
    config["model"]["codebook_size"] = 64
    (run / "config.json").write_text(json.dumps(config))
    assert ">published<" not in drawn(run)


# --- what a folder may lack, and what it may hold


def test_a_run_without_a_step_yet_says_how_to_fill_the_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    html = drawn(tmp_path)
    assert "<b>Not begun</b>: no training step is logged yet." in html
    assert "set config.evaluation to" in html
    assert f"drawn by: python -m spidr_jax.report {tmp_path}" in html
    assert main([str(tmp_path)]) == 0  # with its model, of which there is none
    assert "config.evaluation is empty" in (tmp_path / "report.html").read_text()


def test_damaged_lines_and_values_leave_gaps(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "loss": 4}\n{"step": 1, "loss": null, "flag": true, "t": "x"}\n{"loss": 9}\n'
        '5\nnull\n{"step": "x"}\n{"step": 2, "loss": 3}\n{"step": 3, "loss": 2}\n{"step": 4, "lo'
    )
    (run,) = read_runs([tmp_path])
    assert run.series("loss") == [(0, 4), (1, None), (2, 3), (3, 2)]
    assert "loss fell from 4 to 3 nats" in drawn(tmp_path)


def test_hostile_names_and_values_are_only_text(tmp_path: Path) -> None:
    evil = """<img src=x onerror=alert(1)>&amp;"'$x^$ 音"""
    names = {
        "loss": 1.0,
        f"{evil}/loss/5": 2.0,
        f"{evil}/loss": 3.0,
        f"{evil}/pnmi/5": 0.5,
        evil: 1,
    }
    run = hand_made(tmp_path / evil, lambda i: {n: i * y for n, y in names.items()}, codes=2)
    config = {"workdir": "</script><script>alert(2)</script>", evil: evil, "evaluation": evil}
    (run / "config.json").write_text(json.dumps(config))
    results = [{"layer": 5, "kind": evil, "pnmi": 1.0, evil: 2}, {"layer": evil, "kind": [evil]}]
    (run / "evaluate.json").write_text(json.dumps({"step": evil, "results": results}))
    (tmp_path / "out").mkdir()
    assert main([str(run), str(run), "--out", str(tmp_path / "out" / "report.html")]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    tags = set(re.findall(r"<(\w+)", html))
    allowed = "html head meta title style body h1 h2 p b br small div figure figcaption details"
    shapes = "svg g defs path use clipPath rect text tspan image"
    assert tags <= set(f"{allowed} summary table tr th td {shapes}".split())
    assert not re.search(r"<[^>\"]*(\"[^\"]*\"[^>\"]*)*\son\w+=", html)
    assert set(re.findall(r"(?:href=\"|url\()(.)", html)) <= {"#", "d"}  # d: of data:
    assert table(html)["workdir"][0] == config["workdir"]
    assert escape(f"loss, nats ({evil}, layer 5)") in html


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
    assert main([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: .*run.*{message}", line)
    assert not (run / "report.html").exists()


def test_a_report_that_fails_only_warns(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "report.html").mkdir()
    report.draw(tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: no report of ")
    assert "report.html" in line


# --- in a browser


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_a_narrow_page_does_not_scroll_sideways(tmp_path: Path) -> None:
    runs = [written_runs.write(tmp_path / f"run{i}", lines=20, seed=i) for i in range(2)]
    pairs = {"u": (["a", "a", "b", "b"], [3, 5])}
    matrix = quality.proba_phone_code(*quality.count_matrix(pairs, 8))
    probe = Probe("layer 5", {5: quality.units_quality(pairs, 8)}, matrix)
    opened = page(read_runs(runs), [probe, ""]).replace("<details>", "<details open>")
    opened = re.sub("<meta http-equiv[^>]*>", "", opened)
    script = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"
    (tmp_path / "page.html").write_text(opened.replace("</body>", f"{script}</body>"))
    frame = tmp_path / "frame.html"  # a window is 500 wide at least, a frame in it may be narrower
    frame.write_text(
        "<script>onmessage = (event) => { document.title = `wide ${event.data}` }</script>"
        '<iframe style="border: 0" width="320" height="900" src="page.html"></iframe>'
    )
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--dump-dom",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1700,1000"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>wide 320</title>" in done.stdout
