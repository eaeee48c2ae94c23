"""Extraction of a corpus: its files, going on, bad files, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny

import spidr_jax
from spidr_jax import extract
from spidr_jax.data.corpus import open_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract")
    tiny.write_run(folder / "run")
    tiny.write_corpus(folder / "corpus", utterances=9)
    return folder


def command(folder: Path, out: Path, kind: str, layers: str, *more: str) -> list[str]:
    manifest = folder / "corpus" / "manifest.csv"
    line = ["--checkpoint", str(folder / "run"), "--manifest", str(manifest), "--out", str(out)]
    return [*line, "--kind", kind, "--layers", layers, "--batch-seconds", "4", *more]


def read_units(file: Path) -> dict[str, list[int]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(line.keys() == {"file", "audio", "units"} for line in lines)
    assert all(line["file"] == line["audio"] for line in lines)
    assert len({line["file"] for line in lines}) == len(lines)
    return {line["file"]: line["units"] for line in lines}


def waves(folder: Path) -> dict[str, np.ndarray]:
    rows = open_manifest(folder / "corpus" / "manifest.csv")
    return {row.fileid: soundfile.read(row.path, dtype="int16")[0] for row in rows}


def test_units_are_those_of_load(run: Path, tmp_path: Path) -> None:
    assert extract.main(command(run, tmp_path, "units", "2,3")) == 0
    speech = spidr_jax.load(run / "run")
    for layer in (2, 3):
        units = read_units(tmp_path / "units" / str(layer) / "manifest.jsonl")
        assert units == {n: speech.units(w, layer=layer).tolist() for n, w in waves(run).items()}
    assert extract.main(command(run, tmp_path / "d", "units", "2", "--dedup", "--name", "a")) == 0
    once = read_units(tmp_path / "d" / "units" / "2" / "a.jsonl")
    units = read_units(tmp_path / "units" / "2" / "manifest.jsonl")
    for name, values in units.items():
        assert once[name] == [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]


@pytest.mark.parametrize("kind", ["features", "codebooks"])
def test_arrays_are_those_of_load(kind: str, run: Path, tmp_path: Path) -> None:
    assert extract.main(command(run, tmp_path, kind, "3")) == 0
    speech = spidr_jax.load(run / "run")
    for name, wave in waves(run).items():
        array = np.load(tmp_path / kind / "3" / f"{name}.npy")
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, getattr(speech, kind)(wave, layer=3), atol=1e-4)
    assert not list(tmp_path.rglob("*.partial"))


def test_torch_files(run: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert extract.main(command(run, tmp_path, "features", "1", "--format", "pt")) == 0
    assert torch.load(tmp_path / "features" / "1" / "u03.pt").shape[1] == 32


def test_it_goes_on_where_it_was_stopped(run: Path, tmp_path: Path, capsys: Any) -> None:
    line = command(run, tmp_path, "units", "2,3")
    assert extract.main(line) == 0
    files = [tmp_path / "units" / str(layer) / "manifest.jsonl" for layer in (2, 3)]
    whole = [file.read_text() for file in files]
    for file, keep in zip(files, (5, 3), strict=True):
        lines = file.read_text().splitlines(keepends=True)
        file.unlink()
        cut = "".join(lines[:keep]) + lines[keep][:20]
        file.with_name("manifest.jsonl.partial").write_text(cut)
    capsys.readouterr()
    assert extract.main(line) == 0
    assert "6 files, 3 there before, 0 unusable" in capsys.readouterr().out
    assert [file.read_text() for file in files] == whole
    assert extract.main(line) == 0
    assert "0 files, 9 there before" in capsys.readouterr().out
    assert [file.read_text() for file in files] == whole

    arrays = command(run, tmp_path, "features", "2")
    assert extract.main(arrays) == 0
    (tmp_path / "features" / "2" / "u03.npy").unlink()
    capsys.readouterr()
    assert extract.main(arrays) == 0
    assert "1 files, 8 there before" in capsys.readouterr().out


def test_other_settings_do_not_go_on_in_the_same_folder(
    run: Path, tmp_path: Path, capsys: Any
) -> None:
    assert extract.main(command(run, tmp_path, "units", "2")) == 0
    assert extract.main(command(run, tmp_path, "units", "2", "--dedup")) == 2
    assert "dedup = False, this one has True" in capsys.readouterr().err
    assert extract.main(command(run, tmp_path, "units", "2", "--dedup", "--force")) == 0


@pytest.mark.parametrize("kind", ["units", "features"])
def test_another_manifest_is_not_taken_for_the_first(kind: str, run: Path, tmp_path: Path) -> None:
    other = tiny.write_corpus(tmp_path / "other", utterances=4)  # of equal ids
    line = command(run, tmp_path, kind, "3")
    assert extract.main(line) == 0
    made = {path: path.read_bytes() for path in (tmp_path / kind / "3").iterdir()}
    swapped = [str(other) if part.endswith("manifest.csv") else part for part in line]
    assert extract.main(swapped) == 2
    assert made == {path: path.read_bytes() for path in (tmp_path / kind / "3").iterdir()}
    if kind == "units":
        assert extract.main([*swapped, "--name", "other"]) == 0
        assert extract.main([*line, "--force"]) == 0
        assert (tmp_path / kind / "3" / "other.jsonl").exists()
        assert extract.main([*swapped, "--name", "other", "--precision", "bfloat16"]) == 2
    assert extract.main([*swapped, "--force"]) == 0
    count = len(read_units(tmp_path / kind / "3" / "manifest.jsonl")) if kind == "units" else 0
    assert (count or len(list((tmp_path / kind / "3").iterdir()))) == 4
    with other.open("a") as file:
        file.write("more,u00.wav,8000\r\n")  # a later version of it
    assert extract.main(swapped) == 2


def test_bad_files_are_listed_and_the_rest_is_done(run: Path, tmp_path: Path, capsys: Any) -> None:
    manifest = tiny.write_corpus(tmp_path / "corpus", utterances=4)
    soundfile.write(tmp_path / "corpus" / "u01.wav", np.zeros(20_000), 8_000)
    (tmp_path / "corpus" / "u02.wav").write_bytes(b"no audio")
    tiny_file = tmp_path / "corpus" / "short.wav"
    soundfile.write(tiny_file, np.zeros(300), 16_000)
    with manifest.open("a") as file:
        file.write("short,short.wav,300\r\n")
    line = command(run, tmp_path, "units", "2")
    line[line.index("--manifest") + 1] = str(manifest)
    assert extract.main(line) == 1
    output = capsys.readouterr()
    assert "u01.wav: 8000 Hz" in output.err
    assert "u02.wav" in output.err
    assert "300 samples are too short" in output.err
    assert "2 files, 0 there before, 3 unusable" in output.out
    assert read_units(tmp_path / "units" / "2" / "manifest.jsonl").keys() == {"u00", "u03"}


def test_what_it_cannot_do_is_said_in_one_line(run: Path, tmp_path: Path, capsys: Any) -> None:
    assert extract.main(command(run, tmp_path, "units", "1")) == 2
    assert "layer 1: units are there for layers 2 to 3" in capsys.readouterr().err
    assert extract.main(command(run, tmp_path, "features", "1", "--dedup")) == 2
    assert not (tmp_path / "units").exists()


def test_several_devices_give_the_same(run: Path, tmp_path: Path) -> None:
    assert extract.main(command(run, tmp_path / "one", "features", "2")) == 0
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    arguments = command(run, tmp_path / "four", "features", "2")
    subprocess.run(
        [sys.executable, "-m", "spidr_jax.extract", *arguments],
        check=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    for file in (tmp_path / "one" / "features" / "2").glob("*.npy"):
        other = np.load(tmp_path / "four" / "features" / "2" / file.name)
        np.testing.assert_allclose(other, np.load(file), atol=1e-5)
