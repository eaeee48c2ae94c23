"""The report of a real run: what it shows equals what the run and its model give."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
import tiny
from ml_collections import ConfigDict

import spidr_jax
from spidr_jax import report
from spidr_jax.data import corpus
from spidr_jax.eval import quality
from spidr_jax.eval.alignment import read_alignment
from spidr_jax.eval.metrics import describe
from spidr_jax.report import units
from spidr_jax.report.__main__ import main
from spidr_jax.train import loop as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A real run of six steps with a validation and an evaluation set."""
    folder = tmp_path_factory.mktemp("real")
    manifest = tiny.write_corpus(folder / "corpus")
    config = tiny.config(manifest, folder / "run")
    config.log_every = 1
    config.update(validation=f"dev:{manifest}", validation_every=3)
    config.evaluation = f"tones:{manifest}:{tiny.write_labels(manifest)[0]}"
    run = tiny.open_run(config)
    assert train.train(run, train.build_state(run)) == 0
    return config


@pytest.fixture(scope="module")
def asked(trained: ConfigDict) -> str:
    """The report of it with its model, in the run's folder."""
    assert main([trained.workdir]) == 0
    return (Path(trained.workdir) / "report.html").read_text()


@pytest.fixture(scope="module")
def pairs(trained: ConfigDict) -> dict[int, dict[str, Any]]:
    """By layer, phones and units of every utterance, each alone."""
    manifest = trained.data.manifest
    phones = read_alignment(Path(manifest).with_name("alignment.txt"))
    model = spidr_jax.load(trained.workdir)
    waves = {row.fileid: soundfile.read(row.path)[0] for row in corpus.open_manifest(manifest)}
    found = {name: model.units(wave, layer=(1, 2)) for name, wave in waves.items()}
    return {k: {name: (phones[name], found[name][k - 1]) for name in waves} for k in (1, 2)}


def test_a_run_s_own_report_shows_what_it_has_measured(trained: ConfigDict) -> None:
    report.draw(Path(trained.workdir))
    html = (Path(trained.workdir) / "report.html").read_text()
    assert "step 6 of 6 · " in html
    assert ">dev</text>" in html
    assert "<figcaption>target perplexity, codes (dev)</figcaption>" in html
    assert "over steps: PNMI, share of H(phone), tones" in html
    assert f"drawn by: python -m spidr_jax.report {trained.workdir}" in html
    assert f"<td>versions.jax</td><td>{jax.__version__}</td>" in html


def test_the_model_is_shown_on_its_evaluation_set(pairs: Any, asked: str) -> None:
    measured = {layer: quality.units_quality(pairs[layer], 8) for layer in (1, 2)}
    for layer, found in measured.items():
        row = [str(layer), *(describe(name).text(value) for name, value in found.items())]
        assert "".join(f"<td>{cell}</td>" for cell in row) in asked
    best = max((1, 2), key=lambda layer: measured[layer]["pnmi"])
    assert f"layer {best} after step 6 on 14 of the 14 utterances of tones" in asked


def test_the_matrix_is_an_image_of_a_cell_for_each_phone_and_unit() -> None:
    probability = np.array([[1.0, 0.5, 0.004], [0.0, 0.5, 0.996]])
    svg = units.draw_matrix(
        quality.PhoneUnitMatrix(probability, ["A", "<"], np.array([7, 3, 5])), 400, 300
    )
    assert "data:image/png;base64" in svg
    assert [text for text in re.findall(r">([^<]+)</text>", svg)][:5] == [
        "7",
        "3",
        "5",
        "3 units, by their most probable phone",
        "A",
    ]
    assert "&lt;</text>" in svg


@pytest.mark.parametrize(("seconds", "every"), [(1e6, 1), (9, 2), (6, 3), (0.1, 14)])
def test_a_large_set_is_sampled_evenly(
    trained: ConfigDict, seconds: float, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_MAX_SECONDS", seconds)
    rows = units._spread(corpus.open_manifest(trained.data.manifest))
    assert sorted(row.fileid for row in rows) == [f"u{i:02d}" for i in range(0, 14, every)]
    assert every == 14 or sum(row.num_samples for row in rows) <= seconds * 16_000


def test_another_layer_can_be_asked_for(trained: ConfigDict, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "report.html"
    assert main([trained.workdir, "--layer", "7", "--out", str(out)]) == 0
    assert "--layer 7: allowed are 1, 2" in capsys.readouterr().err
    assert "--layer 7: allowed are 1, 2" in out.read_text()
