"""Manifests of folders and tars: what is listed, and what is left out."""

import json
import os
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from audio_files import BROKEN, compiled, hiss, make_corpus, pack, run, save, tone, write

from spidr_jax.data import parallel
from spidr_jax.data.audio import read_pcm
from spidr_jax.data.corpus import open_manifest
from spidr_jax.data.scan import find_audio, unique_ids


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
