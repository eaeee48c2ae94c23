"""The commands of `spidr_jax.convert` on whole files and folders."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

import spidr_jax
from spidr_jax import convert
from spidr_jax.train import loop as train
from spidr_jax.weights import load as stored
from spidr_jax.weights import orbax as orbax_files
from spidr_jax.weights import torch_files

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    tiny.write_run(folder / "run", step=5)
    assert convert.main(["to-torch", str(folder / "run"), str(folder / "new" / "out.pt")]) == 0
    return folder


def test_config_json_is_the_references(folder: Path) -> None:
    content = json.loads((folder / "new" / "config.json").read_text())
    assert content.keys() == {"model"}
    assert content["model"]["encoder_embed_dim"] == 32
    assert "model_type" not in content["model"]
    saved = torch.load(folder / "new" / "out.pt")
    assert saved.keys() == {"model"}
    assert saved["model"]["current_step"].tolist() == [5]


def test_there_and_back_is_exact(folder: Path, tmp_path: Path) -> None:
    assert convert.main(["from-torch", str(folder / "new" / "out.pt"), str(tmp_path / "run")]) == 0
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["5"]
    first, second = stored.read(folder / "run"), stored.read(tmp_path / "run")
    for name in ("config", "step"):
        assert getattr(first, name) == getattr(second, name)
    assert first.arrays.keys() == set(stored.PARTS)
    assert jax.tree.structure(first.arrays) == jax.tree.structure(second.arrays)
    assert jax.tree.all(jax.tree.map(np.array_equal, first.arrays, second.arrays))
    assert convert.main(["to-torch", str(tmp_path / "run"), str(tmp_path / "out.pt")]) == 0
    one, other = (torch.load(f)["model"] for f in (folder / "new" / "out.pt", tmp_path / "out.pt"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "config.json").read_text() == (folder / "new" / "config.json").read_text()


def test_nothing_is_overwritten_without_force(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out, run = str(tmp_path / "out.pt"), str(tmp_path / "run")
    assert convert.main(["to-torch", str(folder / "run"), out]) == 0
    assert convert.main(["to-torch", str(folder / "run"), out]) == 2
    assert "out.pt: is there already; --force replaces it" in capsys.readouterr().err
    assert convert.main(["to-torch", str(folder / "run"), str(tmp_path / "second.pt")]) == 0
    assert convert.main(["to-torch", str(folder / "run"), out, "--force"]) == 0
    (tmp_path / "config.json").write_text("{}")
    assert convert.main(["to-torch", str(folder / "run"), str(tmp_path / "third.pt")]) == 2
    assert "of another model" in capsys.readouterr().err
    source = str(folder / "new" / "out.pt")
    assert convert.main(["from-torch", source, run]) == 0
    assert convert.main(["from-torch", source, run]) == 2
    assert convert.main(["from-torch", source, run, "--force"]) == 0
    assert not list(tmp_path.rglob("*.partial"))


def test_the_student_alone_is_enough_for_load(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.pt"
    assert convert.main(["to-torch", str(folder / "run"), str(out), "--student-only"]) == 0
    assert not [n for n in torch.load(out)["model"] if n.startswith(("teacher", "codebooks"))]
    wave = np.random.default_rng(0).standard_normal(7_000)
    expected = spidr_jax.load(folder / "run").features(wave, layer=2)
    np.testing.assert_array_equal(spidr_jax.load(out).features(wave, layer=2), expected)
    with pytest.raises(ValueError, match=r"missing: codebooks\.0\.codebook"):
        convert.from_torch_file(out, tmp_path / "run")


def test_a_model_without_moments_is_no_run_to_go_on(folder: Path, tmp_path: Path) -> None:
    convert.from_torch_file(folder / "new" / "out.pt", tmp_path / "run")
    manifest = tiny.write_corpus(tmp_path / "corpus")
    with pytest.raises(ValueError, match="holds a model without optimizer state"):
        train.build_state(tiny.open_run(tiny.config(manifest, tmp_path / "run")))


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, capsys: Any) -> None:
    assert convert.main(["to-torch", str(tmp_path), str(tmp_path / "o.pt")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert convert.main(["to-torch", str(tmp_path), str(tmp_path / "o.bin")]) == 2
    assert convert.main(["from-torch", str(tmp_path / "none.pt"), str(tmp_path / "o")]) == 2
    (tmp_path / "list.pt").touch()
    torch.save([1], tmp_path / "list.pt")
    assert convert.main(["from-torch", str(tmp_path / "list.pt"), str(tmp_path / "o")]) == 2
    assert "holds a list" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello world\n", b'{"model_type": "spidr"}'])
def test_what_torch_never_wrote_is_no_pytorch_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt: is no PyTorch file: it starts with b.*zip"):
        spidr_jax.load(path)
    with pytest.raises(ValueError, match="is no PyTorch file"):
        convert.from_torch_file(path, tmp_path / "run")


def test_an_old_pickle_with_more_than_tensors_is_still_explained(tmp_path: Path) -> None:
    content = {"model": {}, "path": tmp_path}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="not loaded, because unpickling it could run any code"):
        spidr_jax.load(tmp_path / "old.pt")


def test_without_torch_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        torch_files.read(folder / "new" / "out.pt")


def test_a_step_is_chosen_by_its_folder(folder: Path, tmp_path: Path) -> None:
    step = folder / "run" / "checkpoints" / "5"
    assert orbax_files.read(step, lambda _: False).step == 5
    convert.to_torch_file(step, tmp_path / "out.pt")
