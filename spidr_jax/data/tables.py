"""Manifests as text: .csv, .jsonl and fairseq .tsv, read in chunks of columns and written."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spidr_jax.data import files, storage

REQUIRED = ("fileid", "path", "num_samples")
IN_ARCHIVE = ("archive", "byte_offset", "byte_size")
OPTIONAL = (*IN_ARCHIVE, "speaker")
NUMBERS = ("num_samples", "byte_offset", "byte_size")
UNWRITABLE = {".csv": "\r", ".jsonl": "", ".tsv": "\t\r\n"}  # characters, in a file's name
_CHUNK = 1 << 16


class Block(NamedTuple):
    """Some consecutive rows of a manifest, as text.

    Attributes:
        names: columns; `REQUIRED` and what there is of `OPTIONAL`, others are ignored.
        line: number of the first row's line, for messages.
        rows: values in the order of `names`; a relative path is relative to the manifest's folder.
    """

    names: Sequence[str]
    line: int
    rows: Sequence[Sequence[str]]


class Chunk(NamedTuple):
    """Some consecutive rows: a list of str, or an int64 array [n], for each column present."""

    first_line: int
    columns: dict[str, list[str] | np.ndarray]


def read_table(path: str) -> Iterator[Chunk]:
    """Read the rows of a manifest by the reader of its suffix in `READERS`.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming file, line, column, value and what is allowed.
    """
    suffix = os.path.splitext(path)[1]
    if suffix not in READERS:
        raise ValueError(f"{path}: a manifest ends in one of {', '.join(READERS)}")
    try:
        for names, line, rows in READERS[suffix](path):
            _check_names(path, names)
            if rows:
                yield _columns(path, names, line, rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a text table in UTF-8: {error}") from None


def read_csv(path: str) -> Iterator[Block]:
    """Read comma-separated values; the first line has the columns' names."""
    with storage.open_text(path) as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        yield Block(names, 2, [])
        for line in itertools.count(2, _CHUNK):
            if not (rows := list(itertools.islice(reader, _CHUNK))):
                return
            yield Block(names, line, rows)


def read_jsonl(path: str) -> Iterator[Block]:
    """Read a JSON object a line; all have the fields of the first one."""
    names: list[str] = []
    with storage.open_text(path) as file:
        for start in itertools.count(1, _CHUNK):
            if not (lines := list(itertools.islice(file, _CHUNK))):
                return
            rows = []
            for line, text in enumerate(lines, start):
                if not text.strip():
                    continue
                try:
                    record = json.loads(text)
                    names = names or [name for name in (*REQUIRED, *OPTIONAL) if name in record]
                    rows.append([str(record[name]) for name in names])
                except KeyError as error:
                    raise ValueError(f"{path}, line {line}: field {error} is missing") from None
                except (json.JSONDecodeError, TypeError) as error:
                    raise ValueError(f"{path}, line {line}: not a JSON object: {error}") from None
            yield Block(names, start, rows)


def read_tsv(path: str) -> Iterator[Block]:
    """Read fairseq's layout: the folder of the files, then a line of path and samples for each."""
    with storage.open_text(path) as file:
        root = file.readline().strip()
        if not root or "\t" in root:
            raise ValueError(f"{path}, line 1: {root!r} is not the folder that holds the files")
        for line in itertools.count(2, _CHUNK):
            if not (lines := list(itertools.islice(file, _CHUNK))):
                return
            pairs = [text.rstrip("\r\n").split("\t") for text in lines]
            # The reference takes the relative path for the id.
            rows = [(pair[0], storage.join(root, pair[0]), *pair[1:]) for pair in pairs]
            yield Block(REQUIRED, line, rows)


READERS: dict[str, Callable[[str], Iterator[Block]]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".tsv": read_tsv,
}
"""Readers of manifests by suffix, in the layouts of the reference (`spidr.data.read_manifest`)."""


def _check_names(path: str, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if any(name in names for name in IN_ARCHIVE):
        missing += [name for name in IN_ARCHIVE if name not in names]
    if missing:
        there = storage.printable(", ".join(names)) or "none"
        raise ValueError(
            f"{path}: column {', '.join(missing)} is missing; it has {there}; "
            f"a manifest needs {', '.join(REQUIRED)}, in an archive also {', '.join(IN_ARCHIVE)}"
        )


def _columns(path: str, names: Sequence[str], line: int, rows: Sequence[Sequence[str]]) -> Chunk:
    try:
        values = dict(zip(names, zip(*rows, strict=True), strict=True))
    except ValueError:
        number, row = next((i, r) for i, r in enumerate(rows, line) if len(r) != len(names))
        raise ValueError(
            f"{path}, line {number}: {len(row)} fields where {len(names)} are due: {list(row)}"
        ) from None
    columns: dict[str, list[str] | np.ndarray] = {}
    for name in (*REQUIRED, *OPTIONAL):
        if name not in values:
            continue
        texts = values[name]
        if name in NUMBERS:
            columns[name] = _whole_numbers(path, name, line, texts)
            continue
        columns[name] = list(texts)
        if name != "speaker" and "" in texts:
            raise ValueError(f"{path}, line {line + texts.index('')}, column {name}: empty")
    return Chunk(line, columns)


def _whole_numbers(path: str, name: str, line: int, texts: Sequence[str]) -> np.ndarray:
    try:
        numbers = np.array(texts).astype(np.int64)
        if numbers.min() >= 0:
            return numbers
    except (ValueError, OverflowError):
        pass
    bad = next(i for i, text in enumerate(texts) if not text.strip().isascii() or not _whole(text))
    raise ValueError(
        f"{path}, line {line + bad}, column {name}: {texts[bad]!r} is not a whole number >= 0"
    )


def _whole(text: str) -> bool:
    return text.strip().isdigit() and int(text) < 2**63


def write_table(
    path: str, root: str, names: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write a manifest in the layout that the suffix of `path` says, whole or not at all.

    Args:
        path: .csv, .jsonl or .tsv.
        root: first line of a .tsv, the folder that its paths are relative to.
        names: columns, in order; a .tsv takes `path` and `num_samples` of them.
        rows: values in the order of `names`.
    """
    suffix = os.path.splitext(path)[1]
    with files.replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(rows)
        elif suffix == ".jsonl":
            for row in rows:
                record = dict(zip(names, row, strict=True))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            file.write(root + "\n")
            at_path, at_samples = names.index("path"), names.index("num_samples")
            for row in rows:
                relative = os.path.relpath(str(row[at_path]), root)
                file.write(f"{relative}\t{row[at_samples]}\n")
