"""The evaluation command: its numbers against the model's own outputs, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tones
from tones import command

import spidr_jax
from spidr_jax import evaluate
from spidr_jax.data.corpus import open_manifest
from spidr_jax.eval import abx, items, kmeans, quality
from spidr_jax.eval.alignment import read_alignment
from spidr_jax.eval.mfcc import mfcc
from spidr_jax.inference import datasets as evaluation_sets
from spidr_jax.inference import outputs as of_corpus
from spidr_jax.inference.forward import make_forward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones.write(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def told(folder: Path) -> Any:
    out = folder / "out.json"
    line = command(folder, "--kmeans", "5", "--mfcc", "--out", str(out))
    assert evaluate.main(line) == 0
    return json.loads(out.read_text())


def waves(folder: Path) -> dict[str, np.ndarray]:
    return {f"u{i}": soundfile.read(folder / f"u{i}.wav", dtype="float32")[0] for i in range(8)}


def outputs_of(
    speech: Any, kind: str, layers: tuple[int, ...], folder: Path
) -> list[dict[str, np.ndarray]]:
    """Of each layer the output of each file."""
    audio = waves(folder)
    lengths = np.array([len(wave) for wave in audio.values()])
    batch = np.zeros((len(audio), lengths.max()), np.float32)
    for row, wave in zip(batch, audio.values(), strict=True):
        row[: len(wave)] = wave
    found = getattr(speech, kind)(batch, layer=layers, lengths=lengths)
    frames = speech.num_frames(lengths)
    return [{name: rows[i, : frames[i]] for i, name in enumerate(audio)} for rows in found]


def errors(folder: Path, arrays: dict[str, np.ndarray], distance: str) -> dict[str, float]:
    found = items.read_items(folder / "t.item")
    spans = items.locate(found, items.places((name, len(a)) for name, a in arrays.items()))
    frames = np.concatenate(list(arrays.values()))
    measured = abx.measure(frames, found, spans, distance=distance)
    return {name: each.error for name, each in measured.items()}


def test_every_layer_has_the_numbers_of_the_model_s_own_outputs(folder: Path, told: Any) -> None:
    speech = spidr_jax.load(folder / "run")
    rows = {(row["kind"], row["layer"]): row for row in told["results"]}
    phones = read_alignment(folder / "alignment.txt")
    for kind in ("features", "codebooks", "units"):
        layers = (1, 2, 3) if kind == "features" else (2, 3)
        assert {layer for each, layer in rows if each == kind} - {of_corpus.MFCC} == set(layers)
        every = outputs_of(speech, kind, layers, folder)
        for layer, outputs in zip(layers, every, strict=True):
            distance = "identical" if kind == "units" else "angular"
            row = rows[kind, layer]
            for name, error in errors(folder, outputs, distance).items():
                assert row[f"abx_{name}"] == pytest.approx(error, abs=1e-3)
                assert row[f"abx_{name}_cells"] > 10
            if kind == "units":
                pairs = {name: (phones[name], units) for name, units in outputs.items()}
                expected = quality.units_quality(pairs, 8)
                assert {name: row[name] for name in expected} == pytest.approx(expected, rel=0.01)
                assert row["active_codes"] > 4
            else:
                assert "pnmi" not in row
    assert told["step"] == 5
    assert (told["items_clipped"], told["items_empty"]) == (0, 0)


def test_mfcc_tell_the_tones_apart(folder: Path, told: Any) -> None:
    rows = {(row["kind"], row["layer"]): row for row in told["results"]}
    features, units = rows["features", "MFCC"], rows["kmeans", "MFCC"]
    outputs = {name: mfcc(wave) for name, wave in waves(folder).items()}
    for name, error in errors(folder, outputs, "angular").items():
        assert features[f"abx_{name}"] == pytest.approx(error, abs=1e-3)
    assert features["abx_within"] < 0.1
    assert units["pnmi"] > 0.4 > rows["units", 3]["pnmi"] + 0.1
    assert units["active_codes"] == 5


def test_kmeans_units_are_those_of_the_layer_s_features(folder: Path, told: Any) -> None:
    # exactly the same outputs, as the rounds of k-means enlarge the smallest difference
    speech = spidr_jax.load(folder / "run")
    layers = {"features": (1, 2, 3), "codebooks": (2, 3), "units": (2, 3)}
    forward = make_forward(speech.config, jnp.float32, layers)
    corpus = open_manifest(folder / "manifest.csv")
    found = of_corpus.of_model(forward, speech.params, speech.config, corpus, 320_000)
    with of_corpus.collected(found, layers) as outputs:
        features = outputs.arrays["features", 2]
        units = kmeans.assign(features, kmeans.fit(features, 5))
    phones = read_alignment(folder / "alignment.txt")
    pairs = {name: (phones[name], units[at : at + n]) for name, (at, n) in outputs.files.items()}
    (row,) = (r for r in told["results"] if (r["kind"], r["layer"]) == ("kmeans", 2))
    assert row["pnmi"] == pytest.approx(quality.units_quality(pairs, 5)["pnmi"])


def test_one_pass_gives_all_layers_and_kinds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []
    make = evaluate.make_forward

    def counting(config: Any, dtype: Any, layers: Any) -> Any:
        forward = make(config, dtype, layers)

        def run(params: Any, waveforms: Any, lengths: Any) -> Any:
            made.append(np.asarray(lengths))
            return forward(params, waveforms, lengths)

        return run

    monkeypatch.setattr(evaluate, "make_forward", counting)
    assert evaluate.main(command(folder, "--kmeans", "3", "--batch-seconds", "1")) == 0
    # one row for each utterance: a batch holds one second
    assert [len(lengths) for lengths in made] == [1] * 8
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 2 + 2 + 3


def test_the_table_is_in_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = command(folder, "--layers", "1,3", "--kinds", "units,features")
    assert evaluate.main(line) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["layer", "output", "PNMI"]
    assert header.endswith("ABX within  ABX across")
    outputs = [["3", "units"], ["1", "features"], ["3", "features"]]
    assert [row.split()[:2] for row in rows] == outputs
    assert all(len(row) == len(header) and row.endswith(" %") for row in rows)


def test_an_alignment_alone_measures_units(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    line = command(folder, "--layers", "all", "--out", str(out), without="--item")
    assert evaluate.main(line) == 0
    rows = json.loads(out.read_text())["results"]
    assert [(row["kind"], row["layer"]) for row in rows] == [("units", 2), ("units", 3)]
    assert not [name for row in rows for name in row if "abx" in name]
    assert "ABX" not in capsys.readouterr().out


def test_items_alone_measure_everything_without_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    line = command(folder, "--mfcc", "--kmeans", "4", "--out", str(out), "--context", "any",
                   without="--checkpoint --alignment")  # fmt: skip
    assert evaluate.main(line) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["kind"] for row in rows] == ["features", "kmeans"]
    # of 3 phones by 2 speakers: 3 x 2 x 2
    assert [row["abx_within_cells"] for row in rows] == [12, 12]
    assert "k-means 4" in capsys.readouterr().out


def test_one_speaker_has_no_error_across(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "t.item").read_text().splitlines()
    end = float(lines[1].split()[2])
    late = f"u0 {end:.4f} 99.0 A B C s"
    short = f"u0 {end:.4f} {end + 0.001:.4f} A B C s"
    one = [line for line in lines if line.endswith(" s")]
    (tmp_path / "one.item").write_text("\n".join([lines[0], *one, late, short]) + "\n")
    out = tmp_path / "out.json"
    line = command(folder, "--item", str(tmp_path / "one.item"), "--mfcc", "--out", str(out),
                   without="--checkpoint")  # fmt: skip
    assert evaluate.main(line) == 0
    told = json.loads(out.read_text())
    assert told["results"][0]["abx_across"] is None
    assert told["results"][0]["abx_across_cells"] == 0
    assert told["results"][0]["abx_within"] < 0.2
    *table, speakers, note = capsys.readouterr().out.splitlines()
    assert table[-1].endswith("-")
    assert speakers.startswith("ABX across speakers needs a phone in one context by two speakers")
    assert note.startswith(f"of {len(one) + 2} items 1 end after the last frame of their file")
    assert note.endswith("; 1 have no frame and are left out")


def test_the_command_fits_on_the_other_manifest(folder: Path, tmp_path: Path) -> None:
    numbers = []
    for name in ("few.csv", "manifest.csv"):
        out = tmp_path / f"{name}.json"
        line = command(folder, "--kmeans", "5", "--kmeans-manifest", str(folder / name),
                       "--layers", "3", "--kinds", "units", "--out", str(out),
                       without="--item")  # fmt: skip
        assert evaluate.main(line) == 0
        numbers.append(json.loads(out.read_text())["results"])
    assert numbers[0][0] == numbers[1][0]
    assert numbers[0][1] != numbers[1][1]


def test_a_layer_without_a_head_has_features_and_clusters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(command(folder, "--layers", "1", "--kmeans", "3")) == 0
    rows = [row.split()[:2] for row in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["1", "features"], ["1", "k-means"]]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--layers", "5;6"], "argument --layers: '5;6': allowed is all, or such as 5,6"),
        (["--kinds", "unit"], "argument --kinds: 'unit': allowed is features, codebooks, units"),
    ],
)
def test_choices_that_are_not_there_are_named(
    folder: Path, option: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(command(folder, *option))
    assert capsys.readouterr().err.splitlines()[-1].endswith(reason)


@pytest.mark.parametrize(
    ("line", "without", "reason"),
    [
        ([], "--alignment --item", "nothing to compare with: give --alignment, --item or both"),
        ([], "--checkpoint", "nothing to evaluate: give --checkpoint, --mfcc or both"),
        (["--kmeans", "0"], "", "--kmeans 0: allowed is 1 or more clusters"),
        (["--kmeans-manifest", "m.csv"], "", "--kmeans-manifest m.csv: needs --kmeans K"),
        (["--kinds", "features"], "--item", "--kinds features: needs --item; an alignment scores"),
        (["--mfcc"], "--item", "--mfcc: needs --kmeans K or --item; an alignment scores units"),
        (["--layers", "4"], "", "--layers 4: allowed is 1 to 3"),
        (["--layers", "1"], "--item", "--layers: units are there for layers 2 to 3"),
        (["--kmeans", "9999"], "--item", "kmeans = 9999: allowed is 1 to "),
        (["--max-size-group", "1"], "", "max_size_group = 1: allowed is 2 or more, or None"),
        (["--out", "nowhere/x.json"], "", "--out nowhere/x.json: there is no folder nowhere"),
        (["--checkpoint", "nowhere"], "", "nowhere"),
        (["--manifest", "FOLDER/few.csv"], "", "'u3' is no utterance of"),
        (["--alignment", "FOLDER/t.item"], "", "t.item:1: is not `fileid onset offset phone`"),
        (["--item", "FOLDER/alignment.txt"], "", "alignment.txt:1: has no column '#file'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    folder: Path,
    line: list[str],
    without: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [part.replace("FOLDER", str(folder)) for part in line]
    assert evaluate.main(command(folder, *line, without=without)) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
    assert captured.out == ""


def test_the_other_manifest_is_refused_before_the_first_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(of_corpus, "of_model", lambda *_: pytest.fail("it ran"))
    assert evaluate.main(command(folder, "--kmeans", "2", "--kmeans-manifest", "none.csv")) == 2
    assert capsys.readouterr().err == "error: none.csv: there is no such manifest\n"


def test_an_utterance_without_phones_is_named(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "alignment.txt").read_text().splitlines()
    path = tmp_path / "a.txt"
    path.write_text("\n".join(line for line in lines if not line.startswith("u6 ")) + "\n")
    with pytest.raises(ValueError, match=f"^{path}: has no phones of 'u6' of "):
        evaluation_sets.open_set("x", str(folder / "manifest.csv"), str(path))
    with pytest.raises(ValueError, match=f"^config.evaluation: x: {path}: has no phones of 'u6'"):
        evaluation_sets.open_sets(f"x:{folder / 'manifest.csv'}:{path}")


def test_a_broken_file_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(300), 16_000, subtype="PCM_16")
    (tmp_path / "m.csv").write_text("fileid,path,num_samples\nu0,a.wav,300\n")
    for checkpoint in (["--checkpoint", str(folder / "run")], ["--mfcc"]):
        line = ["--manifest", str(tmp_path / "m.csv"), "--alignment", str(folder / "alignment.txt")]
        assert evaluate.main([*line, *checkpoint, "--kmeans", "2"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert "a.wav: 300 samples are too short for a frame" in last
