"""Names that a user's own file adds: known to a command by --register, else refused by name."""

import argparse
from pathlib import Path

import pytest
import tiny

import spidr_jax
from spidr_jax import convert, evaluate, extract
from spidr_jax.model import heads
from spidr_jax.report import __main__ as report
from spidr_jax.weights import register

OWN = """
from spidr_jax.model import heads

def get_config():
    heads.HEADS["own"] = heads.LinearHeads
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with heads whose name nothing here knows."""
    monkeypatch.setitem(heads.HEADS, "own", heads.LinearHeads)
    tiny.write_run(tmp_path / "run", head="own")
    monkeypatch.delitem(heads.HEADS, "own")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "run"


def test_a_name_that_nothing_has_added_is_told(run: Path) -> None:
    line = r"config\.model\.head = 'own': allowed is linear, or .*--register"
    with pytest.raises(ValueError, match=line):
        spidr_jax.load(run)


def test_names_that_a_file_adds_are_known(run: Path) -> None:
    parser = argparse.ArgumentParser()
    register.add_option(parser)
    parser.parse_args(["--register", str(run.parent / "own.py")])
    assert spidr_jax.load(run).config.head == "own"


def test_the_references_files_have_no_name_for_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = str(run.parent / "own.py")
    assert convert.main(["to-torch", str(run), str(run / "out.pt"), "--register", own]) == 2
    line = "config.model.head = 'own': the PyTorch reference has only 'linear'"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("command", [convert, evaluate, extract, report])
def test_a_file_that_fails_is_told_in_one_line(
    command: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["to-torch"] if command is convert else []
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(SystemExit):
        command.main([*line, "--register", str(tmp_path / "bad.py")])  # type: ignore[attr-defined]
    assert "bad.py: ZeroDivisionError: division by zero" in capsys.readouterr().err
