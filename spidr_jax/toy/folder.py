"""The corpus's folder: whether it is made, one maker at a time, and its appearance all at once."""

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spidr_jax.toy.tables import FILES

SPLITS = ("train", "dev-seen", "dev-unseen")
_STAMP = "corpus.json"
_WAV_HEADER = 44
_ADVICE = "delete it or name another folder"


def is_made(target: Path, parameters: Mapping[str, int]) -> bool:
    """Whether the folder holds the corpus of these parameters, whole.

    Raises:
        FileExistsError: it holds something else, a corpus of other parameters or a damaged one.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / _STAMP).read_text(encoding="utf-8"))["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f"{target} exists and is no speech corpus: {_ADVICE}") from None
    if found != parameters:
        raise FileExistsError(f"{target} holds a corpus of {found}, not {parameters}: {_ADVICE}")
    damaged = _first_damaged(target)
    if damaged:
        raise FileExistsError(f"{target} is damaged, {damaged} is missing or too short: {_ADVICE}")
    return True


@contextmanager
def being_made(target: Path, parameters: Mapping[str, int]) -> Iterator[Path]:
    """Lend a folder to write the corpus in, which becomes `target` if all goes well.

    Raises:
        OSError: it cannot be made or moved.
    """
    work = Path(tempfile.mkdtemp(prefix=_work_prefix(target), dir=target.parent))
    try:
        yield work
        stamp = json.dumps({"parameters": parameters}, indent=2)
        (work / _STAMP).write_text(stamp + "\n", encoding="utf-8")
        work.chmod(0o755)
        try:
            work.rename(target)
        except OSError:
            # Another host, which the lock need not hold back, can have been first.
            if not is_made(target, parameters):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """Hold back this machine's other makers of `target`, and clear what killed ones left."""
    import fcntl

    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in target.parent.glob(_work_prefix(target) + "*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _work_prefix(target: Path) -> str:
    return f".{target.name}.making-"


def _first_damaged(target: Path) -> Path | None:
    for split in SPLITS:
        folder = target / split
        for name in FILES:
            if not (folder / name).is_file():
                return folder / name
        with (folder / FILES[0]).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                wav, size = folder / row["path"], _WAV_HEADER + 2 * int(row["num_samples"])
                if not wav.is_file() or wav.stat().st_size != size:
                    return wav
    return None
