"""Manifests as text: .csv, .jsonl and fairseq .tsv, read in chunks of columns and written."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TextIO

import numpy as np

from spidr_jax.data import storage

REQUIRED = ("fileid", "path", "num_samples")
IN_ARCHIVE = ("archive", "byte_offset", "byte_size")
OPTIONAL = (*IN_ARCHIVE, "speaker")
NUMBERS = ("num_samples", "byte_offset", "byte_size")
SUFFIXES = (".csv", ".jsonl", ".tsv")
UNWRITABLE = {".csv": "\r", ".jsonl": "", ".tsv": "\t\r\n"}  # characters, in a file's name
_CHUNK = 1 << 16


class Chunk(NamedTuple):
    """Some consecutive rows: a list of str, or an int64 array [n], for each column present."""

    first_line: int
    columns: dict[str, list[str] | np.ndarray]


class Table(NamedTuple):
    """An open manifest: the folder or URL of its relative paths, and its rows."""

    root: str
    chunks: Iterator[Chunk]


def read_table(path: str) -> Table:
    """Open a manifest for one pass over its rows.

    Columns other than those of this module are ignored. The layouts are those of the reference
    (`spidr.data.write_manifest`, `read_manifest`): csv with or without the archive columns,
    json lines with the same fields, fairseq tsv (root on the first line, then path, samples).

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming file, line, column, value and what is allowed. Rows are checked as
            they are read, so also from the iterator.
    """
    suffix = os.path.splitext(path)[1]
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: a manifest ends in one of {', '.join(SUFFIXES)}")
    if suffix != ".tsv":
        reader = _csv_rows if suffix == ".csv" else _json_rows
        return Table(storage.parent(path), _chunks(path, reader))
    with storage.open_text(path) as file:
        root = file.readline().strip()
    if not root or "\t" in root:
        raise ValueError(f"{path}, line 1: {root!r} is not the folder that holds the files")
    return Table(storage.join(storage.parent(path), root), _chunks(path, _tsv_rows))


_Rows = Iterator[tuple[list[str], int, list[Sequence[str]]]]


def _csv_rows(path: str, file: TextIO) -> _Rows:
    reader = csv.reader(file, strict=True)
    names = next(reader, [])
    if names:
        names[0] = names[0].removeprefix("\ufeff")
    line = 2
    while rows := list[Sequence[str]](itertools.islice(reader, _CHUNK)):
        yield names, line, rows
        line += len(rows)
    if line == 2:
        yield names, line, []


def _json_rows(path: str, file: TextIO) -> _Rows:
    names: list[str] = []
    for start in itertools.count(1, _CHUNK):
        lines = list(itertools.islice(file, _CHUNK))
        if not lines:
            return
        rows: list[Sequence[str]] = []
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
        yield names, start, rows


def _tsv_rows(path: str, file: TextIO) -> _Rows:
    file.readline()
    for start in itertools.count(2, _CHUNK):
        lines = list(itertools.islice(file, _CHUNK))
        if not lines:
            return
        pairs = [text.rstrip("\r\n").split("\t") for text in lines]
        # The reference takes the relative path for the id.
        rows: list[Sequence[str]] = [(pair[0], *pair) for pair in pairs]
        yield list(REQUIRED), start, rows


def _chunks(path: str, reader: Callable[[str, TextIO], _Rows]) -> Iterator[Chunk]:
    with storage.open_text(path) as file:
        blocks = reader(path, file)
        while True:
            try:
                block = next(blocks, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: not a text table in UTF-8: {error}") from None
            if block is None:
                return
            names, line, rows = block
            _check_names(path, names)
            if rows:
                yield _columns(path, names, line, rows)


def _check_names(path: str, names: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if any(name in names for name in IN_ARCHIVE):
        missing += [name for name in IN_ARCHIVE if name not in names]
    if missing:
        raise ValueError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(names) or 'none'}; "
            f"a manifest needs {', '.join(REQUIRED)}, in an archive also {', '.join(IN_ARCHIVE)}"
        )


def _columns(path: str, names: list[str], line: int, rows: list[Sequence[str]]) -> Chunk:
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
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
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
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
