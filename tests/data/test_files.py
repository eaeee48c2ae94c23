"""Files that appear whole or not at all, and locks between processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from spidr_jax.data import files

HOLD = "import sys; from pathlib import Path; from spidr_jax.data import files"


def test_a_file_is_replaced_only_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ("x" * 249)
    with files.replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), files.replacing(path) as partial:
        partial.write_text("half \ud800 of the second", encoding="utf-8")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_the_first_of_two_makers_of_a_folder_wins(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with files.making_folder(target, ".a-") as late:
        (late / "by").write_text("late")
        with files.making_folder(target, ".b-") as early:
            (early / "by").write_text("early")
    assert (target / "by").read_text() == "early"
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [target]


def test_a_lock_holds_back_other_processes_and_says_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", f"{HOLD}; held = files.lock(Path(sys.argv[1]))", str(path)]
    with files.lock(path):
        holder = path.read_text().strip()
        refused = subprocess.run(command, capture_output=True, text=True)
        assert f"{path} is held by {holder}" in refused.stderr.splitlines()[-1]
    subprocess.run(command, check=True)
    assert holder.startswith("process ")
    assert path.read_text().strip() != holder


def test_a_lock_never_writes_through_a_symbolic_link(tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / ".lock"
    target.write_text("kept")
    link.symlink_to(target)
    with pytest.raises(OSError, match=str(link)):
        files.lock(link)
    assert target.read_text() == "kept"
