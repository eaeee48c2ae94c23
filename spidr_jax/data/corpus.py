"""A corpus: the rows of one manifest as memory-mapped columns, compiled once.

A compiled manifest is a folder of raw little-endian columns. Its name carries the version of the
manifest that it was made from, so that a changed manifest is compiled again, and it appears by
one rename, so that any number of processes may start at once. Checksums of the columns are verified
at every opening, about a second for each gigabyte.
"""

import array
import glob
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spidr_jax.data import files, storage, tables

_LAYOUT = 3
_META = "meta.json"
_MAX_NAME = 180  # bytes of a manifest's name; a folder's may have 255
_ABANDONED = 24 * 3600  # seconds after which an unfinished one is a killed process's
_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One utterance: where its audio is and how many samples (at 16 kHz) it holds.

    `path` is absolute, or the member's name where `archive` (absolute) is not empty; the audio
    is then the `byte_size` bytes from `byte_offset` of the archive.
    """

    fileid: str
    path: str
    num_samples: int
    archive: str = ""
    byte_offset: int = 0
    byte_size: int = 0
    speaker: str = ""

    @property
    def place(self) -> str:
        """The file to name in a message."""
        return storage.printable(f"{self.archive}:{self.path}" if self.archive else self.path)


class _Texts:
    """A mapped column of strings: UTF-8 bytes one after another, and the end of each."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ends = np.memmap(folder / f"{name}.ends", dtype="<i8", mode="r")
        empty = not self._ends[-1]  # nothing to map
        self._bytes = np.empty(0, "u1") if empty else np.memmap(folder / f"{name}.utf8", mode="r")

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].tobytes().decode()


class Corpus:
    """The rows of a manifest, mapped from disk.

    Attributes:
        manifest: the manifest's path.
        num_samples: int64 [n], samples of every utterance.
        fingerprint: hex text that changes with any file id or length, not with the folder.
        checksum: number that changes with anything in the rows.
    """

    num_samples: np.ndarray

    def __init__(self, manifest: str, folder: Path) -> None:
        """Map the compiled columns in `folder`; `open_manifest` finds or makes them.

        Raises:
            OSError, ValueError, TypeError, KeyError: they are not as they were written.
        """
        sealed = json.loads((folder / _META).read_text())
        meta = sealed["meta"]
        if sealed["checksum"] != _checksum_of(meta) or meta["files"] != _checksums(folder):
            raise ValueError(f"{folder}: damaged: its checksums differ")
        self.manifest = manifest
        self.fingerprint: str = meta["fingerprint"]
        self.checksum = _checksum_of(meta["files"])
        self._root = storage.parent(manifest)
        self._texts: dict[str, _Texts] = {}
        self._numbers: dict[str, np.ndarray] = {}
        for name in meta["columns"]:
            if name in tables.NUMBERS:
                self._numbers[name] = np.memmap(folder / f"{name}.i64", dtype="<i8", mode="r")
            else:
                self._texts[name] = _Texts(folder, name)
        self.num_samples = self._numbers["num_samples"].view(np.ndarray)

    def __len__(self) -> int:
        """Count the utterances."""
        return len(self.num_samples)

    def __iter__(self) -> Iterator[Row]:
        """Go through the rows in the manifest's order."""
        return map(self.row, range(len(self)))

    def row(self, index: int) -> Row:
        """Give utterance `index`, its paths made absolute.

        Raises:
            IndexError: outside 0 .. len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.manifest}: row {index} of {len(self)}")
        texts = {name: column[index] for name, column in self._texts.items()}
        numbers = {name: int(column[index]) for name, column in self._numbers.items()}
        located = "archive" if "archive" in texts else "path"
        texts[located] = storage.join(self._root, texts[located])
        return Row(**texts, **numbers)  # type: ignore[arg-type]


def _checksum_of(meta: object) -> int:
    return zlib.crc32(json.dumps(meta).encode())


def _checksums(folder: Path) -> dict[str, int]:
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != _META:
            with path.open("rb") as file:
                total = 0
                while block := file.read(1 << 22):
                    total = zlib.crc32(block, total)
            sums[path.name] = total
    return sums


def open_manifest(path: str | os.PathLike[str]) -> Corpus:
    """Open a manifest of a suffix in `READERS`, compiling it first where that has not been done.

    The columns are kept beside the manifest, or where that folder cannot be written (or is
    remote) under `$XDG_CACHE_HOME/spidr_jax` (default `~/.cache`).

    Raises:
        FileNotFoundError: where there is no such manifest.
        ValueError: naming file, line, column, value and what is allowed.
    """
    path = os.path.expanduser(path)
    try:
        base = os.fsencode(os.path.basename(path))[:_MAX_NAME].decode(errors="ignore")
        name = f"{base}.columns-{_LAYOUT}-{storage.version_key(path)}"
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such manifest") from None
    homes = _homes(path)
    for home in homes:
        try:
            return Corpus(path, home / name)
        except (OSError, ValueError, TypeError, KeyError) as error:
            if (home / name).exists():
                _log.warning("%s: compiled again: %s", home / name, error)
                shutil.rmtree(home / name, ignore_errors=True)
    with ExitStack() as work:
        for home in homes:
            try:
                home.mkdir(parents=True, exist_ok=True)
                made = files.making_folder(home / name, f"{name}.partial-")
                partial = work.enter_context(made)
                break
            except OSError as error:
                _log.info("%s: no room for the compiled manifest: %s", home, error)
        else:
            places = ", ".join(map(str, homes)) or "no home folder"
            raise OSError(
                f"{path}: cannot be compiled: {places} is not writable: set XDG_CACHE_HOME"
            )
        _log.info("%s: compiling it to %s (about 5 s a million rows)", path, home / name)
        _compile(path, partial)
    _remove_old(home / name)
    return Corpus(path, home / name)


def _homes(path: str) -> list[Path]:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    where = path if storage.is_remote(path) else os.path.abspath(path)
    key = hashlib.sha256(os.fsencode(where)).hexdigest()[:16]
    apart = [] if cache.startswith("~") else [Path(cache, "spidr_jax", key)]  # of no known user
    return apart if storage.is_remote(path) else [Path(where).parent, *apart]


def _remove_old(compiled: Path) -> None:
    for old in compiled.parent.glob(glob.escape(compiled.name.rsplit("-", 2)[0]) + "-*"):
        in_work = ".partial-" in old.name and time.time() - old.stat().st_mtime < _ABANDONED
        if old != compiled and not in_work:
            shutil.rmtree(old, ignore_errors=True)


class _Columns:
    """The raw files of a manifest's columns, written chunk by chunk."""

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = []
        self.hashes = array.array("q")  # of the file ids
        self.digest = hashlib.sha256()
        self._folder = folder
        self._ends: dict[str, int] = {}

    def append(self, chunk: tables.Chunk) -> None:
        self.names = list(chunk.columns)
        for name, values in chunk.columns.items():
            if isinstance(values, np.ndarray):
                self._write(f"{name}.i64", values.astype("<i8").tobytes())
                continue
            encoded = [value.encode() for value in values]
            lengths = np.array([len(value) for value in encoded], "<i8")
            ends = self._ends.get(name, 0) + np.cumsum(lengths)
            self._ends[name] = int(ends[-1])
            self._write(f"{name}.utf8", b"".join(encoded))
            self._write(f"{name}.ends", ends.tobytes())
            if name == "fileid":
                self.hashes.extend(map(hash, values))
                self.digest.update("\n".join(values).encode())
        self.digest.update(np.asarray(chunk.columns["num_samples"], "<i8").tobytes())

    def _write(self, name: str, content: bytes) -> None:
        with open(self._folder / name, "ab") as file:
            file.write(content)


def _compile(path: str, folder: Path) -> None:
    columns = _Columns(folder)
    for chunk in tables.read_table(path):
        columns.append(chunk)
    if not columns.names:
        raise ValueError(f"{path}: holds no utterance; write it again from the folder of audio")
    _check_unique(path, _Texts(folder, "fileid"), np.frombuffer(columns.hashes, np.int64))
    meta = {
        "columns": columns.names,
        "fingerprint": columns.digest.hexdigest(),
        "files": _checksums(folder),
    }
    sealed = {"meta": meta, "checksum": _checksum_of(meta)}
    (folder / _META).write_text(json.dumps(sealed))


def _check_unique(path: str, ids: _Texts, hashes: np.ndarray) -> None:
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    seen: dict[str, int] = {}
    for index in np.flatnonzero(np.isin(hashes, repeated)).tolist() if repeated.size else ():
        fileid = ids[index]
        if fileid in seen:
            raise ValueError(
                f"{path}, rows {seen[fileid] + 1} and {index + 1}, column fileid: {fileid!r} in "
                "both, but an id names one utterance; `python -m spidr_jax.data.manifest write` "
                "gives each file its own"
            )
        seen[fileid] = index
