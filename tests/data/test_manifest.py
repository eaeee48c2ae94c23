"""Manifests: read, compiled, written, checked; and the preparation of other audio."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from audio_files import BROKEN, RATE, hiss, make_corpus, pack, save, tone, write_csv

from spidr_jax.data import corpus as corpus_module
from spidr_jax.data import files, parallel
from spidr_jax.data import manifest as manifest_module
from spidr_jax.data import prepare as prepare_module
from spidr_jax.data.audio import read_pcm
from spidr_jax.data.check import check_manifest
from spidr_jax.data.corpus import Row, open_manifest
from spidr_jax.data.prepare import prepare
from spidr_jax.data.scan import find_audio, unique_ids


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spidr_jax"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- reading


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


def compiled(folder):
    return [path.name for path in folder.iterdir() if ".columns-" in path.name]


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


# ---- write


def run(*arguments):
    return manifest_module.main([str(argument) for argument in arguments])


def test_write_lists_a_folder_in_order_from_headers(tmp_path, capsys):
    for number, name in enumerate(["b/2.flac", "a/1.WAV", "c.ogg", "b/10.wav"]):
        save(tmp_path / "in" / name, hiss(number, 3000 + number))
    write(tmp_path / "in" / "notes.txt", "not audio")
    out = tmp_path / "m.csv"
    assert run("write", tmp_path / "in", out, "--jobs", 2) == 0
    assert "4 files, 0.00 h; 0 left out" in capsys.readouterr().out
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert rows == [
        ["fileid", "path", "num_samples"],
        ["1", str(tmp_path / "in/a/1.WAV"), "3001"],
        ["10", str(tmp_path / "in/b/10.wav"), "3003"],
        ["2", str(tmp_path / "in/b/2.flac"), "3000"],
        ["c", str(tmp_path / "in/c.ogg"), "3002"],
    ]
    assert len(compiled(tmp_path)) == 1  # so that training opens it at once
    assert run("write", tmp_path / "in", out, "--ext", "flac") == 0
    assert len(open_manifest(out)) == 1


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".tsv"])
def test_what_is_written_is_read_back_in_every_layout(tmp_path, suffix):
    _, sounds = make_corpus(tmp_path / "in", 3, ".wav")
    out = tmp_path / f"m{suffix}"
    assert run("write", tmp_path / "in", out) == 0
    corpus = open_manifest(out)
    assert [Path(row.path).stem for row in corpus] == sorted(sounds)
    for row in corpus:
        np.testing.assert_array_equal(read_pcm(row), sounds[Path(row.path).stem])
    if suffix == ".jsonl":
        first = json.loads(out.read_text().splitlines()[0])
        assert first == {
            "fileid": "u0",
            "path": str(tmp_path / "in/u0.wav"),
            "num_samples": len(sounds["u0"]),
        }
    if suffix == ".tsv":
        assert out.read_text().splitlines()[:2] == [
            str(tmp_path / "in"),
            f"u0.wav\t{len(sounds['u0'])}",
        ]


def test_write_lists_and_leaves_out_what_cannot_be_trained_on(tmp_path, capsys):
    make_corpus(tmp_path / "in", 3)
    for kind, make in BROKEN.items():
        make(tmp_path / "in" / kind, hiss(1, 9000))
    assert run("write", tmp_path / "in", tmp_path / "m.csv") == 1
    said = capsys.readouterr()
    # Damage inside FLAC and float samples is not in a header: `check` is there for them.
    left = {"truncated_wav", "garbage", "empty", "wrong_rate", "stereo"}
    assert f"{len(left)} left out" in said.out
    assert {kind for kind in BROKEN if f"/{kind}." in said.err} == left
    ids = {row.fileid for row in open_manifest(tmp_path / "m.csv")}
    assert ids == {"u0", "u1", "u2", "truncated_flac", "bit_flipped_flac", "nan", "unscaled"}


@pytest.mark.parametrize(
    ("suffix", "held"),
    [(".csv", ["a", "b\nc", "d\te"]), (".jsonl", ["a", "b\nc", "d\te", "f\rg"]), (".tsv", ["a"])],
)
def test_write_leaves_out_names_that_the_layout_cannot_hold(tmp_path, capsys, suffix, held):
    names = ["a", "b\nc", "d\te", "f\rg"]
    for name in names:
        save(tmp_path / "in" / f"{name}.wav", hiss(0, 3000))
    out = tmp_path / f"m{suffix}"
    assert run("write", tmp_path / "in", out) == int(held != names)
    assert [Path(row.path).stem for row in open_manifest(out)] == held
    said = capsys.readouterr().err
    for name in set(names) - set(held):
        path = str(tmp_path / "in" / f"{name}.wav")
        assert repr(path)[1:-1] + f": a {suffix} cannot hold the {name[1]!r} in its name; " in said


def test_a_folder_that_a_tsv_cannot_name_replaces_nothing(tmp_path, capsys):
    make_corpus(tmp_path / "i\tn", 1, ".wav")
    out = Path(write(tmp_path / "m.tsv", "before"))
    assert run("write", tmp_path / "i\tn", out) == 2
    assert r"u0.wav: a .tsv cannot hold the '\t'" in capsys.readouterr().err
    assert out.read_text() == "before"


def test_write_lists_a_name_that_is_not_utf_8_and_keeps_the_rest(tmp_path, capsys):
    make_corpus(tmp_path / "in", 2, ".wav")
    os.rename(tmp_path / "in" / "u0.wav", os.fsencode(tmp_path / "in") + b"/\xff\x1b[2J.wav")
    assert run("write", tmp_path / "in", tmp_path / "m.csv") == 1
    assert r"/in/\udcff\x1b[2J.wav: its name is not UTF-8; rename it" in capsys.readouterr().err
    assert [row.fileid for row in open_manifest(tmp_path / "m.csv")] == ["u1"]


def test_results_keep_the_order_of_the_files_however_many_there_are():
    def slow_first(index):
        time.sleep(0.001 * (index % 3 == 0))
        return index

    assert list(parallel.each(slow_first, 500, jobs=3, title="test")) == list(range(500))


def test_file_ids_are_stems_where_they_tell_files_apart():
    assert unique_ids(["x/a.wav", "y/b.wav"]) == ["a", "b"]
    assert unique_ids(["x/a.wav", "y/a.wav"]) == ["x/a", "y/a"]
    assert unique_ids(["a.wav", "a.flac"]) == ["a.wav", "a.flac"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "in" / "a.wav", hiss(0, 3000))
    save(tmp_path / "else" / "b.wav", hiss(1, 3000))
    (tmp_path / "in" / "other").symlink_to(tmp_path / "else")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert find_audio(str(tmp_path / "in")).names == ["a.wav", "other/b.wav"]


def test_write_measures_mp3_by_decoding(tmp_path):
    save(tmp_path / "in" / "a.mp3", tone(300, 1.3))
    assert run("write", tmp_path / "in", tmp_path / "m.csv") == 0
    row = open_manifest(tmp_path / "m.csv").row(0)
    assert len(read_pcm(row)) == row.num_samples


def test_write_a_tar(tmp_path):
    _, sounds = make_corpus(tmp_path / "in", 4, ".wav")
    tar = pack(tmp_path / "in", tmp_path / "all.tar")
    for name in ("m.csv", "m.jsonl"):
        assert run("write", tar, tmp_path / name) == 0
        corpus = open_manifest(tmp_path / name)
        assert [row.fileid for row in corpus] == sorted(sounds)
        for row in corpus:
            assert row.archive == tar
            np.testing.assert_array_equal(read_pcm(row), sounds[row.fileid])


def test_a_tar_lists_what_unpacking_it_would_give(tmp_path, capsys):
    old, new = (save(tmp_path / f"{i}.wav", hiss(i, 3000 + i)) for i in (0, 1))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:

        def special(kind, name, target=""):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)

        tar.add(old, "in/a.wav")
        special(tarfile.LNKTYPE, "in/hard.wav", "in/a.wav")
        tar.add(new, "./in/a.wav")  # takes the place of the first
        special(tarfile.SYMTYPE, "in/soft.wav", "softer.wav")
        special(tarfile.SYMTYPE, "in/softer.wav", "../in/a.wav")
        special(tarfile.SYMTYPE, "in/dangling.wav", "/elsewhere/b.wav")
        special(tarfile.SYMTYPE, "in/loop.wav", "loop.wav")
        special(tarfile.FIFOTYPE, "in/pipe.wav")
    assert run("write", tmp_path / "all.tar", tmp_path / "m.csv") == 1
    lost = capsys.readouterr().err
    assert all(
        f"all.tar:in/{name}.wav: no plain file" in lost for name in ("dangling", "loop", "pipe")
    )
    corpus = open_manifest(tmp_path / "m.csv")
    lengths = {row.fileid: row.num_samples for row in corpus}
    assert lengths == {"a": 3001, "hard": 3000, "soft": 3001, "softer": 3001}
    assert all(len(read_pcm(row)) == row.num_samples for row in corpus)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_files_joined_end_to_end_are_said(tmp_path, capsys, suffix):
    make_corpus(tmp_path / "in", 2, suffix)
    assert run("write", tmp_path / "in", tmp_path / "m.csv") == 0
    assert run("check", tmp_path / "m.csv") == 0
    one, two = (tmp_path / "in" / f"u{i}{suffix}" for i in (0, 1))
    one.write_bytes(one.read_bytes() + two.read_bytes())
    assert run("check", tmp_path / "m.csv") == 1
    assert f"/u0{suffix}: 2 {suffix[1:].upper()} files joined" in capsys.readouterr().err
    assert run("prepare", tmp_path / "in", tmp_path / "out") == 1
    assert f"/u0{suffix}: 2 {suffix[1:].upper()} files joined" in capsys.readouterr().err
    assert [row.fileid for row in open_manifest(tmp_path / "out" / "manifest.csv")] == ["u1"]


def cut_tar(tmp_path):
    make_corpus(tmp_path / "in", 4, ".wav")
    tar = Path(pack(tmp_path / "in", tmp_path / "all.tar"))
    tar.write_bytes(tar.read_bytes()[:30_000])
    return tar


def whole_tar(tmp_path):
    make_corpus(tmp_path / "in", 1, ".wav")
    return pack(tmp_path / "in", tmp_path / "all.tar")


def zipped_tar(tmp_path):
    make_corpus(tmp_path / "in", 1, ".wav")
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in")
    return tmp_path / "all.tar.gz"


def empty_folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def broken_folder(tmp_path):
    BROKEN["garbage"](tmp_path / "a", None)
    return tmp_path


@pytest.mark.parametrize(
    ("make", "out", "reason"),
    [
        (cut_tar, "m.csv", "neither a folder nor a whole uncompressed tar .*unpack it"),
        (zipped_tar, "m.csv", "neither a folder nor a whole uncompressed tar .*unpack it"),
        (empty_folder, "m.csv", r"holds no file that ends in \.flac, \.wav, \.ogg, \.mp3"),
        (broken_folder, "m.csv", "none of 1 files is usable; .*a.flac: cannot be read"),
        (lambda folder: folder / "gone", "m.csv", "no such folder or tar"),
        (lambda folder: "gs://bucket/in", "m.csv", "a URL; only a folder or tar on this machine"),
        (empty_folder, "no/m.csv", "/no/m.csv: there is no folder .*/no$"),
        (whole_tar, "m.tsv", r"cannot name members of a tar: write \.csv or \.jsonl"),
        (empty_folder, "m.txt", r"ends in one of \.csv, \.jsonl, \.tsv"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, capsys, make, out, reason):
    source = make(tmp_path)
    assert run("write", source, tmp_path / out) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(reason, last)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("command", ["write in m.csv", "prepare in out", "check m.csv"])
def test_jobs_below_none_are_refused_by_their_flag(capsys, command):
    assert run(*command.split(), "--jobs", -1) == 2
    said = capsys.readouterr().err
    assert said == "--jobs -1: allowed is 1 or more threads, or 0 for one a core\n"


# ---- check


def test_check_passes_a_sound_corpus(tmp_path, capsys):
    manifest, sounds = make_corpus(tmp_path, 6)
    assert run("check", manifest) == 0
    out = capsys.readouterr().out
    hours = sum(map(len, sounds.values())) / RATE / 3600
    assert f"6 utterances, {hours:.2f} h; 0 bad, 0 odd" in out
    bars = [line.split() for line in out.splitlines() if "#" in line or " - " in line]
    assert sum(int(bar[3]) for bar in bars) == 6


def test_check_names_every_kind_of_fault(tmp_path, capsys):
    manifest, sounds = make_corpus(tmp_path, 3)
    rows = [(name, f"{name}.flac", len(pcm)) for name, pcm in sounds.items()]
    for kind, make in BROKEN.items():
        rows.append((kind, make(tmp_path / kind, hiss(1, 9000)).name, 9000))
    odd = {
        "silence": np.zeros(9000, np.int16),
        "loud": (hiss(2, 9000) * 20.0).clip(-32768, 32767).astype(np.int16),
        "short": hiss(3, 1500),
    }
    for kind, pcm in odd.items():
        rows.append((kind, save(tmp_path / f"{kind}.wav", pcm).name, len(pcm)))
    rows.append(("longer", save(tmp_path / "longer.wav", hiss(4, 9001)).name, 9000))
    rows.append(("shorter", save(tmp_path / "shorter.flac", hiss(4, 8999)).name, 9000))
    report = check_manifest(write_csv(manifest, rows))
    assert len(report.bad) == len(BROKEN) + 1
    assert len(report.odd) == len(odd) + 1
    text = "\n".join(report.bad + report.odd)
    for kind in (*BROKEN, *odd, "longer"):
        assert f"/{kind}." in text
    for part in (
        "truncated_wav.wav: 4489 samples in it, 9000 by its header, 9000 by the manifest",
        "longer.wav: 9001 samples in it, 9001 by its header, 9000 by the manifest",
        "shorter.flac: 8999 samples in it, 8999 by its header, 9000 by the manifest",
        "8000 Hz with 1 channel",
        "16000 Hz with 2 channel",
        "silence.wav: silent: peak 0",
        "of it at full scale",
        "short.wav: too short: 1500 samples of at least 2000",
    ):
        assert part in text
    for count in ("2 truncated", "1 longer than said", "1 silent", "1 clipped", "1 too short"):
        assert count in report.lines[-1]
    assert run("check", manifest) == 1
    assert "11 bad, 4 odd" in capsys.readouterr().out


def test_a_manifest_opens_nothing_outside_of_a_given_folder(tmp_path, capsys, monkeypatch):
    manifest, _ = make_corpus(tmp_path / "in", 1, ".wav")
    save(tmp_path / "secret.wav", hiss(0, 9000))
    (tmp_path / "in" / "link.wav").symlink_to(tmp_path / "secret.wav")
    with open(manifest, "a") as file:
        paths = ["link.wav", "../secret.wav", f"file://{tmp_path}/in/u0.wav", "\x1b[2J.wav"]
        file.writelines(f"s{i},{path},9000\n" for i, path in enumerate(paths))
    monkeypatch.setenv("SPIDR_JAX_AUDIO_ROOT", str(tmp_path / "in"))
    assert run("check", manifest) == 1
    said = capsys.readouterr()
    assert said.err.count("outside of SPIDR_JAX_AUDIO_ROOT") == 3
    assert r"/in/\x1b[2J.wav: cannot be read: No such file" in said.err
    assert "5 utterances, 0.00 h; 4 bad" in said.out


def test_check_of_a_malformed_manifest_is_one_line(tmp_path, capsys):
    assert run("check", write(tmp_path / "m.csv", "a,b\n1,2\n")) == 2
    assert "column fileid, path, num_samples is missing" in capsys.readouterr().err


# ---- prepare


def strongest(pcm, rate):
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    return np.argmax(spectrum) * rate / len(pcm)


def test_prepare_makes_16_khz_mono_flac_of_anything(tmp_path, capsys):
    stereo = np.stack([tone(440, 2.0, 44_100), np.zeros(88_200, "f4")], 1)
    save(tmp_path / "in/x/stereo.wav", stereo, 44_100)
    save(tmp_path / "in/low.wav", tone(440, 2.0, 8000), 8000, "FLOAT")
    save(tmp_path / "in/song.mp3", tone(440, 2.0, 48_000), 48_000)
    save(tmp_path / "in/deep.flac", tone(440, 2.0), RATE, "PCM_24")
    exact = hiss(0, 5000)
    save(tmp_path / "in/exact.wav", exact)
    out = tmp_path / "out"
    assert run("prepare", tmp_path / "in", out, "--jobs", 2) == 0
    assert "5 converted, 0 there before, 0 of 5 unreadable" in capsys.readouterr().out
    corpus = open_manifest(out / "manifest.csv")
    sounds = {row.fileid: read_pcm(row) for row in corpus}
    assert sorted(sounds) == ["deep", "exact", "low", "song", "stereo"]
    assert corpus.row(4).path == str(out / "x/stereo.flac")
    np.testing.assert_array_equal(sounds.pop("exact"), exact)
    for name, pcm in sounds.items():
        assert len(pcm) == pytest.approx(2 * RATE, abs=1600 if name == "song" else 1)
        assert strongest(pcm, RATE) == pytest.approx(440, abs=1)
        middle = np.abs(pcm[8000:24_000]).max()
        assert middle == pytest.approx((0.15 if name == "stereo" else 0.3) * 32768, rel=0.02)
    assert check_manifest(str(out / "manifest.csv")).bad == []


def test_prepare_goes_on_where_it_was_stopped(tmp_path):
    make_corpus(tmp_path / "in", 4, ".wav")
    prepare(str(tmp_path / "in"), str(tmp_path / "out"))
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.flac")}
    gone = tmp_path / "out" / "u2.flac"
    gone.unlink()
    summary = prepare(str(tmp_path / "in"), str(tmp_path / "out"))
    assert "1 converted, 3 there before" in summary.line
    assert gone.exists()
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items() if p != gone)
    assert len(open_manifest(tmp_path / "out" / "manifest.csv")) == 4


def test_prepare_follows_what_becomes_of_its_source(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    make_corpus(source, 3, ".wav")
    prepare(str(source), str(out))
    changed = hiss(7, 5000)
    save(source / "u0.wav", changed)
    (source / "u1.wav").unlink()
    save(source / "u2.ogg", hiss(8, 6000))
    for line in ("3 converted, 0 there before", "0 converted, 3 there before"):
        assert line in prepare(str(source), str(out)).line
    sounds = {row.fileid: read_pcm(row) for row in open_manifest(out / "manifest.csv")}
    assert sorted(sounds) == ["u0", "u2.ogg", "u2.wav"]
    np.testing.assert_array_equal(sounds["u0"], changed)
    make_corpus(tmp_path / "other", 1)
    with pytest.raises(ValueError, match=f"prepared from {source}; name another folder"):
        prepare(str(tmp_path / "other"), str(out))


def test_prepare_takes_long_audio_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_BLOCK", 1000)
    wave = hiss(0, 44_100).astype("f4") / 32768
    save(tmp_path / "a.wav", wave, 44_100)
    blocks = list(prepare_module.to_16k_mono(Row("a", str(tmp_path / "a.wav"), 0)))
    assert len(blocks) > 40
    pcm = np.rint(wave * 32768) / 32768
    whole = librosa.resample(pcm.astype("f4"), orig_sr=44_100, target_sr=RATE, res_type="soxr_hq")
    np.testing.assert_array_equal(np.concatenate(blocks), np.rint(whole * 32768))


def test_prepare_lists_what_it_cannot_read_and_keeps_no_part_of_it(tmp_path, capsys):
    make_corpus(tmp_path / "in", 2)
    for kind, make in BROKEN.items():
        make(tmp_path / "in" / kind, hiss(1, 9000))
    assert run("prepare", tmp_path / "in", tmp_path / "out") == 1
    lost = ["bit_flipped_flac", "empty", "garbage", "nan", "truncated_flac", "truncated_wav"]
    said = capsys.readouterr()
    assert sorted(kind for kind in BROKEN if f"/{kind}." in said.err) == sorted([*lost, "unscaled"])
    made = sorted(p.stem for p in (tmp_path / "out").glob("*.flac"))
    assert made == ["stereo", "u0", "u1", "wrong_rate"]
    assert list((tmp_path / "out").glob("*.partial")) == []


def test_prepare_keeps_files_of_one_stem_apart_and_inside(tmp_path):
    save(tmp_path / "in/a.wav", hiss(0, 3000))
    save(tmp_path / "in/a.ogg", hiss(1, 3000))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "in/a.wav", "a.wav")
        tar.add(tmp_path / "in/a.ogg", "a.ogg")
        tar.add(tmp_path / "in/a.wav", "../../b.wav")
    prepare(str(tmp_path / "all.tar"), str(tmp_path / "out"))
    made = sorted(path.name for path in tmp_path.rglob("*.flac"))
    assert made == ["a.ogg.flac", "a.wav.flac", "b.flac"]
    assert soundfile.info(tmp_path / "out" / "b.flac").frames == 3000


def test_prepare_refuses_to_write_into_its_source(tmp_path):
    make_corpus(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="lies inside"):
        prepare(str(tmp_path / "in"), str(tmp_path / "in/out"))


def test_the_command_runs_as_a_module(tmp_path):
    make_corpus(tmp_path / "in", 2)
    command = [sys.executable, "-W", "error", "-m", "spidr_jax.data.manifest"]
    arguments = ["write", str(tmp_path / "in"), str(tmp_path / "m.csv")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert "2 files" in done.stdout
    assert "headers: 100%" in done.stderr
