"""The files of an extraction: units as JSON lines, arrays one a file; both can be resumed.

T frames, n layers.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from spidr_jax.data.corpus import Corpus, Row
from spidr_jax.data.files import replacing
from spidr_jax.weights.torch_files import need

FORMATS = ("npy", "pt")
SETTINGS = "extract.json"


class Outputs:
    """Where outputs go, as a context."""

    done: set[str]  # file ids that need no work

    def write(self, fileid: str, values: np.ndarray) -> None:
        """Take the outputs [n, T, ...] of an utterance."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        """Open what is kept open: nothing, unless a subclass does."""
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Close it, and complete it if all went well."""


def settle(
    folder: Path, settings: dict[str, Any], corpus: Corpus, name: str = "", *, force: bool = False
) -> None:
    """Record the settings and the manifest of an extraction, and refuse to resume one with others.

    Args:
        folder: folder of one kind of output.
        settings: settings of all files in it.
        corpus: the utterances.
        name: name of this corpus's files; empty where all are.
        force: remove what is there; what `name` does not name only if it has other settings.

    Raises:
        FileExistsError: the folder holds an extraction with other settings, or of another manifest
            or version of it.
    """
    file = folder / SETTINGS
    there = json.loads(file.read_text()) if file.is_file() else {}
    manifests = there.pop("manifests", {name: None} if there else {})
    source = f"{os.path.abspath(corpus.manifest)} with rows {corpus.checksum:08x}"
    new = settings | {"manifest": source}
    old = there | {"manifest": manifests.get(name, source)} if there else new
    for key in [key for key in new if old.get(key) != new[key] and not force]:
        raise FileExistsError(
            f"{folder} holds an extraction with {key} = {old.get(key)!r}, this one has {new[key]!r}"
            f": choose another --out{' or --name' if name else ''}, or --force replaces it"
        )
    if there and force and (there != settings or not name):
        shutil.rmtree(folder)
        manifests = {}
    for path in folder.glob(f"*/{glob.escape(name)}.jsonl*") if name and force else ():
        path.unlink()
    with replacing(file) as partial:
        noted = settings | {"manifests": manifests | {name: source}}
        partial.write_text(json.dumps(noted, indent=2) + "\n")


class UnitFiles(Outputs):
    """FOLDER/LAYER/NAME.jsonl, each written as NAME.jsonl.partial until all utterances are in."""

    def __init__(self, folder: Path, layers: Iterable[int], name: str, dedup: bool) -> None:
        """Find what an earlier extraction has finished; a line that was cut off is dropped."""
        self._dedup = dedup
        self._files = [folder / str(layer) / f"{name}.jsonl" for layer in layers]
        self._partials = [file.with_name(file.name + ".partial") for file in self._files]
        self._open: list[TextIO] = []
        pairs = zip(self._partials, self._files, strict=True)
        lines = [_lines(partial, file) for partial, file in pairs]
        self.done = set.intersection(*(set(found) for found in lines))
        for partial, found in zip(self._partials, lines, strict=True):
            with replacing(partial) as new:
                new.write_text("".join(found[fileid] for fileid in found if fileid in self.done))

    def __enter__(self) -> "UnitFiles":
        """Open the files to append to."""
        self._open = [partial.open("a") for partial in self._partials]
        return self

    def write(self, fileid: str, values: np.ndarray) -> None:
        """Append the units [n, T] of an utterance."""
        for file, units in zip(self._open, values, strict=True):
            if self._dedup:
                units = units[np.flatnonzero(np.diff(units, prepend=-1))]
            line = {"file": fileid, "audio": fileid, "units": units.tolist()}
            file.write(json.dumps(line) + "\n")

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Close the files, and give them their names where nothing has gone wrong."""
        for stream in self._open:
            stream.close()
        if kind is None:
            for partial, file in zip(self._partials, self._files, strict=True):
                os.replace(partial, file)


class ArrayFiles(Outputs):
    """FOLDER/LAYER/ID.npy or .pt, each written whole or not at all."""

    def __init__(
        self, folder: Path, layers: Iterable[int], form: str, corpus: Iterable[Row]
    ) -> None:
        """Find which utterances of the corpus have all their files."""
        self._folders = [folder / str(layer) for layer in layers]
        self._form = form
        self._torch = need("torch") if form == "pt" else None
        ids = [row.fileid for row in corpus]
        self.done = {i for i in ids if all(map(_is_whole, self._paths(i)))}

    def _paths(self, fileid: str) -> list[Path]:
        if Path(fileid).is_absolute() or ".." in Path(fileid).parts:
            raise ValueError(f"file id {fileid!r} would lie outside of the folder")
        return [folder / f"{fileid}.{self._form}" for folder in self._folders]

    def write(self, fileid: str, values: np.ndarray) -> None:
        """Write the arrays [n, T, dim] of an utterance."""
        for path, array in zip(self._paths(fileid), values, strict=True):
            with replacing(path, sync=False) as partial:  # there may be a million of them
                if self._torch is not None:
                    self._torch.save(self._torch.from_numpy(array.copy()), partial)
                else:
                    with partial.open("wb") as file:
                        np.save(file, array)


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0  # a power cut can leave an empty one


def _lines(partial: Path, complete: Path) -> dict[str, str]:
    """Whole lines by file id of the partial file, or of the complete one."""
    path = partial if partial.is_file() else complete
    found: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # cut off by a kill
            try:
                found[json.loads(line)["file"]] = line
            except (ValueError, KeyError, TypeError):
                continue
    return found
