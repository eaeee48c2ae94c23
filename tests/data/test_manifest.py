"""Manifests as they are read and compiled."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from audio_files import compiled, write, write_csv

from spidr_jax.data import corpus as corpus_module
from spidr_jax.data import files
from spidr_jax.data.corpus import Row, open_manifest


def test_csv_rows_with_paths_relative_to_the_manifest(tmp_path):
    text = "fileid,path,num_samples,speaker\né1,in/é1.flac,16000,ann\nb,/abs/b.wav,0,\n"
    corpus = open_manifest(write(tmp_path / "m.csv", text))
    assert len(corpus) == 2
    assert corpus.num_samples.dtype == np.int64
    assert corpus.num_samples.tolist() == [16000, 0]
    assert list(corpus) == [
        Row("é1", str(tmp_path / "in/é1.flac"), 16000, speaker="ann"),
        Row("b", "/abs/b.wav", 0),
    ]
    with pytest.raises(IndexError, match="row 2 of 2"):
        corpus.row(2)


def test_layouts_of_the_reference_are_read_as_they_are(tmp_path):
    # The columns and quoting of spidr.data.write_manifest 0.2.0 (by polars), in each layout.
    csv_text = 'fileid,path,num_samples\n"a,b","/c/a,b.wav",5\nd,/c/d.wav,6\n'
    tar_text = (
        "fileid,path,num_samples,archive,byte_offset,byte_size\n"
        "a,c/a.flac,5,/data/all.tar,512,99\nb,c/b.flac,6,rel.tar,2048,100\n"
    )
    json_text = (
        '{"fileid":"a","path":"/c/a.wav","num_samples":5}\n'
        '{"fileid":"d","path":"/c/d.wav","num_samples":6}\n'
    )
    tsv_text = "/c\nx/a.wav\t5\nd.wav\t6\n"
    assert list(open_manifest(write(tmp_path / "m.csv", csv_text))) == [
        Row("a,b", "/c/a,b.wav", 5),
        Row("d", "/c/d.wav", 6),
    ]
    assert list(open_manifest(write(tmp_path / "t.csv", tar_text))) == [
        Row("a", "c/a.flac", 5, "/data/all.tar", 512, 99),
        Row("b", "c/b.flac", 6, str(tmp_path / "rel.tar"), 2048, 100),
    ]
    assert list(open_manifest(write(tmp_path / "m.jsonl", json_text))) == [
        Row("a", "/c/a.wav", 5),
        Row("d", "/c/d.wav", 6),
    ]
    assert list(open_manifest(write(tmp_path / "m.tsv", tsv_text))) == [
        Row("x/a.wav", "/c/x/a.wav", 5),
        Row("d.wav", "/c/d.wav", 6),
    ]


def test_windows_line_ends_and_other_columns_do_no_harm(tmp_path):
    text = "\ufefffileid,duration,path,num_samples\r\na,1.5,a.wav,5\r\n"
    assert list(open_manifest(write(tmp_path / "m.csv", text))) == [
        Row("a", str(tmp_path / "a.wav"), 5)
    ]
    text = f"\ufeff{tmp_path}\r\na.wav\t5\r\n"
    assert list(open_manifest(write(tmp_path / "m.tsv", text))) == [
        Row("a.wav", str(tmp_path / "a.wav"), 5)
    ]
    text = '\ufeff{"fileid":"a","path":"/a.wav","num_samples":5}\r\n'
    assert list(open_manifest(write(tmp_path / "m.jsonl", text))) == [Row("a", "/a.wav", 5)]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("m.csv", "", "column fileid, path, num_samples is missing; it has none"),
        ("m.csv", "fileid,path,num_samples\n", "holds no utterance"),
        (
            "m.csv",
            "fileid,file,num_samples\na,b,1\n",
            "column path is missing; it has fileid, file",
        ),
        (
            "m.csv",
            "fileid,path,num_samples,archive\na,b,1,c\n",
            "column byte_offset, byte_size is missing",
        ),
        (
            "m.csv",
            "fileid,path,num_samples\na,b,1\nc,d,1.5\n",
            r"line 3, column num_samples: '1\.5' is not a whole number >= 0",
        ),
        ("m.csv", "fileid,path,num_samples\na,b,-1\n", "line 2, column num_samples: '-1'"),
        ("m.csv", "fileid,path,num_samples\na,b,\n", "line 2, column num_samples: ''"),
        ("m.csv", "fileid,path,num_samples\na,b,9" + "9" * 19 + "\n", "line 2, column num_samples"),
        ("m.csv", "fileid,path,num_samples\na,b,1\nc,,1\n", "line 3, column path: empty"),
        ("m.csv", "fileid,path,num_samples\na,b,1\nc,d\n", "line 3: 2 fields where 3 are due"),
        (
            "m.csv",
            "fileid,path,num_samples\na,b,1\nc,d,1\na,e,1\n",
            "rows 1 and 3, column fileid: 'a' in both",
        ),
        ("m.jsonl", "", "holds no utterance"),
        ("m.jsonl", '{"fileid": "a", "path": "b"}\n', "column num_samples is missing"),
        (
            "m.jsonl",
            '{"fileid":"a","path":"b","num_samples":1}\n{"fileid":"c","path":"d"}\n',
            "line 2: field 'num_samples' is missing",
        ),
        ("m.jsonl", "a,b,1\n", "line 1: not a JSON object"),
        ("m.jsonl", "[1, 2]\n", "column fileid, path, num_samples is missing"),
        ("m.tsv", "", "line 1: '' is not the folder"),
        ("m.tsv", "a.wav\t5\n", "line 1: .* is not the folder"),
        ("m.tsv", "/c\na.wav 5\n", "line 2: 2 fields where 3 are due"),
        ("m.tsv", "/c\n", "holds no utterance"),
        ("m.txt", "a", "ends in one of .csv, .jsonl, .tsv"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_in_one_line(tmp_path, name, text, reason):
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=reason) as error:
        open_manifest(path)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == [name]  # nothing half made is left


def test_a_manifest_that_is_not_text_is_named(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"fileid,path,num_samples\n\xff\xfe,b,1\n")
    with pytest.raises(ValueError, match=r"m\.csv: not a text table in UTF-8"):
        open_manifest(tmp_path / "m.csv")


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: there is no such manifest"):
        open_manifest(tmp_path / "none.csv")


def test_many_rows_are_read_in_chunks(tmp_path):
    count = 150_000  # more than two chunks
    rows = [(f"id{i}", f"p{i}.wav", i) for i in range(count)]
    corpus = open_manifest(write_csv(tmp_path / "m.csv", rows))
    assert corpus.num_samples.tolist() == list(range(count))
    for index in (0, 65_535, 65_536, count - 1):
        assert corpus.row(index) == Row(f"id{index}", str(tmp_path / f"p{index}.wav"), index)
    rows[140_000] = ("id5", "x.wav", 1)
    with pytest.raises(ValueError, match="rows 6 and 140001, column fileid: 'id5'"):
        open_manifest(write_csv(tmp_path / "m.csv", rows))
    rows[140_000] = ("y", "y.wav", "many")
    with pytest.raises(ValueError, match="line 140002, column num_samples: 'many'"):
        open_manifest(write_csv(tmp_path / "m.csv", rows))


# ---- compiling


def test_a_manifest_is_compiled_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "m.csv", [("a", "a.wav", 5)])
    first = open_manifest(path)
    names = compiled(tmp_path)
    assert (tmp_path / names[0]).stat().st_mode & 0o055 == 0o055  # others may read it too
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "_compile", None)
        assert list(open_manifest(path)) == list(first)
    write_csv(tmp_path / "m.csv", [("a", "a.wav", 6)])
    second = open_manifest(path)
    assert second.num_samples.tolist() == [6]
    assert first.num_samples.tolist() == [5]  # mapped still
    assert len(compiled(tmp_path)) == 1  # the old one is gone
    assert compiled(tmp_path) != names
    assert first.fingerprint != second.fingerprint


def test_damaged_columns_are_compiled_again(tmp_path, caplog):
    path = write_csv(tmp_path / "m.csv", [("a", "a.wav", 5), ("b", "b.wav", 6)])
    first = open_manifest(path)
    rows, folder = list(first), tmp_path / compiled(tmp_path)[0]
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        flipped = bytes([content[0] ^ 1]) + content[1:]
        for damaged in (flipped, bytes(len(content)), content[:-1], b"", b"{}", None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            caplog.clear()
            again = open_manifest(path)
            assert "compiled again" in caplog.text, (file.name, damaged)
            assert (list(again), again.fingerprint) == (rows, first.fingerprint)
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace(first.fingerprint[:4], first.fingerprint[4::-1][:4]))
    assert open_manifest(path).fingerprint == first.fingerprint


def test_a_manifest_of_a_long_name_without_a_home_is_compiled(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of an unknown user
    assert len(open_manifest(write_csv(tmp_path / ("é" * 125 + ".csv"), [("a", "a.wav", 5)]))) == 1


def test_the_fingerprint_is_of_ids_and_lengths_not_of_the_folder(tmp_path):
    def fingerprint(folder, rows):
        (tmp_path / folder).mkdir()
        return open_manifest(write_csv(tmp_path / folder / "m.csv", rows)).fingerprint

    rows = [("a", "a.wav", 5), ("b", "b.wav", 6)]
    prints = [
        fingerprint("one", rows),
        fingerprint("two", rows[::-1]),
        fingerprint("three", [("a", "a.wav", 5), ("c", "b.wav", 6)]),
    ]
    assert len(set(prints)) == 3
    assert fingerprint("moved", [(i, f"/elsewhere/{p}", n) for i, p, n in rows]) == prints[0]


def test_beside_a_manifest_on_a_read_only_folder_the_user_cache_serves(
    tmp_path, monkeypatch, cache
):
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = write_csv(folder / "m.csv", [("a", "a.wav", 5)])
    make = files.tempfile.mkdtemp

    def refuse(prefix, dir):  # root may write anywhere, so it is refused here
        if Path(dir) == folder:
            raise PermissionError(13, "Permission denied", str(dir))
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    assert open_manifest(path).num_samples.tolist() == [5]
    assert os.listdir(folder) == ["m.csv"]
    monkeypatch.setattr(corpus_module, "_compile", None)
    assert open_manifest(path).row(0).path == str(folder / "a.wav")
    assert len(list(cache.iterdir())) == 1


OPEN = """
import sys
from spidr_jax.data.corpus import open_manifest
print("ready", flush=True)
sys.stdin.readline()
corpus = open_manifest(sys.argv[1])
print(corpus.num_samples.sum(), corpus.row(len(corpus) - 1).fileid)
"""


def test_processes_that_start_at_once_share_one_compiled_manifest(tmp_path):
    path = write_csv(tmp_path / "m.csv", [(f"u{i}", "a.wav", i) for i in range(30_000)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    assert answers == [f"{sum(range(30_000))} u29999\n"] * 4
    assert len(compiled(tmp_path)) == 1


def test_a_manifest_behind_a_url_is_read(cache):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/m.csv", b"fileid,path,num_samples\na,in/a.wav,5\n")
    corpus = open_manifest("memory://bucket/m.csv")
    assert list(corpus) == [Row("a", "memory://bucket/in/a.wav", 5)]
    assert len(list(cache.iterdir())) == 1
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/n\.csv"):
        open_manifest("memory://bucket/n.csv")
