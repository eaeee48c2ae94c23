"""The report of a real run: what it shows equals what the run and its model give."""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
import tiny
from ml_collections import ConfigDict
from report_page import SECTIONS, TRAINING, read

import spidr_jax
from spidr_jax.data import corpus
from spidr_jax.eval import quality
from spidr_jax.eval.alignment import read_alignment
from spidr_jax.report import pictures, probe
from spidr_jax.report.__main__ import main
from spidr_jax.train import loop as train
from spidr_jax.train import metrics
from spidr_jax.train.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A real run of six steps with a validation and an evaluation set."""
    folder = tmp_path_factory.mktemp("real")
    manifest = tiny.write_corpus(folder / "corpus")
    config = tiny.config(manifest, folder / "run")
    config.log_every = 1
    config.update(validation=f"dev:{manifest}", validation_every=3)
    config.evaluation = f"tones:{manifest}:{tiny.write_labels(manifest)[0]}"
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
    assert "config.model.codebook_size is 8, not 256" in page.text["validation"]
    assert "spidr_jax.evaluate" in page.text["evaluation-over-layers-abx-pnmi-"]


def test_every_value_of_the_run_is_in_its_charts(trained: ConfigDict) -> None:
    page = read(Path(trained.workdir) / "report.html")
    lines = metrics.read(Path(trained.workdir) / "metrics.jsonl")
    places = {
        "loss_1": (TRAINING, "Layer 1: loss"),
        "target_ppl/2": (TRAINING, "Layer 2: target perplexity"),
        "pred_ppl/1": (TRAINING, "Layer 1: prediction perplexity"),
        "active_codes/2": ("codebook-usage", "Layer 2: active codes"),
        "teacher_decay": ("optimisation", "Teacher decay"),
        "learning_rate": ("optimisation", "Learning rate"),
        "grad_norm": ("optimisation", "Gradient norm before clipping"),
        "audio_seconds_per_second": ("speed", "Speed"),
        "dev/loss": ("validation", "Mean loss on dev"),
        "dev/pred_ppl/2": ("validation", "Layer 2: prediction perplexity on dev"),
        "dev/active_codes/1": ("validation", "Layer 1: active codes on dev"),
        "tones/pnmi/2": ("unit-quality-over-steps-and-layers", "Layer 2: PNMI on tones"),
    }
    for name, place in places.items():
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert page.drawn(*place) == pytest.approx(expected, rel=1e-3), name
        assert len(expected) == {"dev": 3, "tones": 2}.get(name.split("_")[0], 6), name
    over_layers = page.drawn(SECTIONS[4], "PNMI on tones, over layers, newest values")
    expected = {k: lines[-1][f"tones/pnmi/{k}"] for k in (1, 2)}
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


@pytest.mark.parametrize(("seconds", "every"), [(1e6, 1), (9, 2), (6, 3), (0.1, 14)])
def test_a_large_set_is_sampled_evenly(
    trained: ConfigDict, seconds: float, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_MAX_SECONDS", seconds)
    rows = probe._spread(corpus.open_manifest(trained.data.manifest))
    assert [row.fileid for row in rows] == [f"u{i:02d}" for i in range(0, 14, every)]
    assert every == 14 or sum(row.num_samples for row in rows) <= seconds * 16_000


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


def test_nothing_is_loaded_from_outside(asked: Path) -> None:
    html = asked.read_text()
    assert not re.search(r"https?:|//\w|url\(|@import|\bsrc=|\bhref=|fetch\(|import\(", html)
    assert "default-src 'none'" in html
