"""The embedded corpus: its bytes, its labels, and what happens when making it goes wrong."""

import csv
import hashlib
import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from spidr_jax.toy import make_corpus
from spidr_jax.toy.corpus import SEEN_SPEAKERS, SPLITS, TRAIN_SPEAKERS, UNSEEN_SPEAKERS
from spidr_jax.toy.espeak import PHONES, PhoneEvent, Segment, align, tidy
from spidr_jax.toy.speaker import draw_voice
from spidr_jax.toy.text import sentences

ROOT = Path(__file__).parents[2]
SMALL = {"train_utterances_per_speaker": 2, "dev_sentences": 2}
SMALL_FLAGS = ["--train-utterances-per-speaker=2", "--dev-sentences=2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "corpus"
    make_corpus(folder, **SMALL)
    return folder


def start(folder, *flags, limit_bytes=None, **environment):
    code = "from spidr_jax.toy.__main__ import main; main()"
    if limit_bytes:
        code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit_bytes},) * 2); {code}"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_wav(path):
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (1, 2, 16_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)


def read_segments(folder):
    segments = defaultdict(list)
    for line in (folder / "alignment.txt").read_text().splitlines():
        fileid, onset, offset, phone = line.split()
        segments[fileid].append(Segment(float(onset), float(offset), phone))
    return segments


def test_bytes_depend_on_neither_jobs_nor_hash_seed(corpus, tmp_path):
    again = tmp_path / "again"
    code, out, err = finish(start(again, *SMALL_FLAGS, "--jobs=3", PYTHONHASHSEED="5"))
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    assert str(again) in out
    assert digest(again) == digest(corpus)


def test_another_seed_gives_other_speakers():
    assert draw_voice("es00", 0, female=False) == draw_voice("es00", 0, female=False)
    assert draw_voice("es00", 0, female=False) != draw_voice("es00", 1, female=False)


def test_splits_hold_what_they_promise(corpus):
    texts, speakers, fileids = {}, {}, []
    for split in SPLITS:
        manifest = rows(corpus / split / "manifest.csv")
        for row in manifest:
            audio = read_wav(corpus / split / row["path"])
            assert len(audio) == int(row["num_samples"])
            assert 0.01 < np.abs(audio).max() / 32_768 < 1
        transcripts = rows(corpus / split / "transcripts.csv")
        assert [row["fileid"] for row in transcripts] == [row["fileid"] for row in manifest]
        fileids += [row["fileid"] for row in manifest]
        texts[split] = [row["text"] for row in transcripts]
        speakers[split] = Counter(row["speaker"] for row in manifest)
    assert len(set(fileids)) == len(fileids) == 10 * 2 + 5 * 2
    assert speakers == {
        "train": dict.fromkeys(TRAIN_SPEAKERS, 2),
        "dev-seen": dict.fromkeys(SEEN_SPEAKERS, 2),
        "dev-unseen": dict.fromkeys(UNSEEN_SPEAKERS, 2),
    }
    assert len(set(texts["train"])) == 20
    assert set(texts["dev-seen"]) == set(texts["dev-unseen"])
    assert not set(texts["train"]) & set(texts["dev-seen"])


@pytest.mark.parametrize("split", SPLITS)
def test_alignment_covers_the_audio_without_gaps(corpus, split):
    segments = read_segments(corpus / split)
    manifest = rows(corpus / split / "manifest.csv")
    assert list(segments) == [row["fileid"] for row in manifest]
    for row in manifest:
        mine = segments[row["fileid"]]
        assert mine[0].onset == 0
        assert mine[-1].offset == pytest.approx(int(row["num_samples"]) / 16_000, abs=1e-4)
        assert mine[0].phone == mine[-1].phone == "SIL"
        assert all(a.offset == b.onset for a, b in itertools.pairwise(mine))
        assert all(s.offset > s.onset and s.phone in (*PHONES, "SIL") for s in mine)


def test_items_are_the_triphones_of_the_alignment(corpus):
    folder = corpus / "dev-seen"
    expected = [
        [fileid, f"{b.onset:.4f}", f"{b.offset:.4f}", b.phone, a.phone, c.phone, fileid[:4]]
        for fileid, mine in read_segments(folder).items()
        for a, b, c in zip(mine, mine[1:], mine[2:], strict=False)
        if "SIL" not in (a.phone, b.phone, c.phone) and b.offset - b.onset > 0.0301
    ]
    header, *items = (folder / "triphone.item").read_text().splitlines()
    assert header == "#file onset offset #phone prev-phone next-phone speaker"
    lengths = [float(item.split()[2]) - float(item.split()[1]) for item in items]
    assert min(lengths) >= 0.0299
    longer = [i.split() for i, length in zip(items, lengths, strict=True) if length > 0.0301]
    assert longer == expected


def test_labels_lie_where_the_sound_is(corpus):
    energies = defaultdict(list)
    for split in SPLITS:
        segments = read_segments(corpus / split)
        for row in rows(corpus / split / "manifest.csv"):
            audio = read_wav(corpus / split / row["path"])
            for onset, offset, phone in segments[row["fileid"]]:
                part = audio[int(onset * 16_000) : int(offset * 16_000)]
                energies[phone].append(10 * np.log10(np.mean(part**2) / np.mean(audio**2)))
    mean = {phone: float(np.mean(values)) for phone, values in energies.items()}
    vowels = np.mean([mean[phone] for phone in ("AA", "AE", "AH", "AO", "EH", "IH")])
    stops = np.mean([mean[phone] for phone in ("P", "T", "K", "D")])
    assert mean["SIL"] < -20
    assert mean["SIL"] + 5 < stops < vowels - 10


def test_a_finished_corpus_is_left_alone(corpus, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    make_corpus(corpus, **SMALL)
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_another_corpus_or_something_else_in_the_folder_is_refused(corpus, tmp_path):
    with pytest.raises(FileExistsError, match=r"'seed': 0.*'seed': 4.*delete it or name another"):
        make_corpus(corpus, seed=4, **SMALL)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="is no speech corpus: delete it or name another"):
        make_corpus(tmp_path, **SMALL)


@pytest.mark.parametrize("name", ["train_utterances_per_speaker", "dev_sentences", "jobs"])
def test_counts_are_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
        make_corpus(tmp_path / "corpus", **{name: 0})


def test_a_missing_engine_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'espeakng_loader: pip install "spidr_jax\[demo\]"'):
        make_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "corpus"
    with pytest.raises(OSError, match=f"^cannot make the corpus in {re.escape(str(target))}: "):
        make_corpus(target, **SMALL)


def test_a_failed_write_ends_in_one_line_and_leaves_nothing(tmp_path):
    # As a full disk, but that any process may have it: no file may grow beyond this size.
    code, _, err = finish(start(tmp_path / "corpus", *SMALL_FLAGS, limit_bytes=20_000))
    assert code == 1
    place = re.escape(str(tmp_path / "corpus"))
    assert re.fullmatch(f"error: cannot make the corpus in {place}: .*File too large\n", err)
    assert [path.name for path in tmp_path.iterdir()] == [".corpus.lock"]


def test_two_makers_at_once_make_one_corpus(corpus, tmp_path):
    makers = [start(tmp_path / "corpus", *SMALL_FLAGS) for _ in range(2)]
    results = [finish(maker) for maker in makers]
    assert [(code, err) for code, _, err in results] == [(0, "")] * 2
    assert sorted(len(out.splitlines()) for _, out, _ in results) == [0, 2]
    assert digest(tmp_path / "corpus") == digest(corpus)


def stop_in_the_middle(folder, sign):
    maker = start(folder, *SMALL_FLAGS)
    deadline = time.monotonic() + 60
    while not list(folder.parent.rglob("*.wav")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(maker.pid, sign)
    return finish(maker)


def test_ctrl_c_leaves_nothing(tmp_path):
    code, _, err = stop_in_the_middle(tmp_path / "corpus", signal.SIGINT)
    assert (code, err) == (1, "interrupted: nothing is made\n")
    assert [path.name for path in tmp_path.iterdir()] == [".corpus.lock"]


def test_a_killed_making_looks_unfinished_and_is_cleared_by_the_next(corpus, tmp_path):
    code, _, _ = stop_in_the_middle(tmp_path / "corpus", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "corpus").exists()
    make_corpus(tmp_path / "corpus", **SMALL)
    assert digest(tmp_path / "corpus") == digest(corpus)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", ".corpus.lock"}


def test_sentences_are_distinct_and_of_a_speakable_length():
    texts = list(itertools.islice(sentences(0), 2_000))
    assert len(set(texts)) == 2_000
    assert all(re.fullmatch(r"[A-Z][a-z, ]*[.?]", text) for text in texts)
    assert all(4 <= len(text.split()) <= 16 for text in texts)
    assert texts == list(itertools.islice(sentences(0), 2_000))
    assert not set(texts[:50]) & set(itertools.islice(sentences(1), 50))


@pytest.mark.parametrize(
    ("first", "second", "quiet", "expected"),
    [
        # a stop begins with its closure, another phone after a pause
        ("'a", (600, "t"), slice(400, 600), [(0, 0.4, "AE"), (0.4, 1, "T")]),
        ("a", (600, "m"), slice(400, 600), [(0, 0.4, "AE"), (0.4, 0.6, "SIL"), (0.6, 1, "M")]),
        # an event of two phones is split, but before a third that it shares
        ("O@", (500, "z"), slice(0), [(0, 0.3, "AO"), (0.3, 0.5, "R"), (0.5, 1, "Z")]),
        ("O@", (500, "r"), slice(0), [(0, 0.5, "AO"), (0.5, 1, "R")]),
    ],
)
def test_alignment_by_hand(first, second, quiet, expected):
    pcm = np.full(1_000, 500, np.int16)
    pcm[quiet] = 0
    assert align([PhoneEvent(0, first), PhoneEvent(*second)], pcm, 1_000) == expected


def test_a_foreign_phone_is_refused():
    with pytest.raises(ValueError, match="'y:' is no phone of en-us"):
        align([PhoneEvent(0, "y:")], np.zeros(10, np.int16))


def test_tidy_joins_silences_and_drops_short_ones():
    times = [0, 0.1, 0.2, 0.2, 0.3, 0.31, 0.4]
    phones = ("SIL", "SIL", "AA", "B", "SIL", "D")
    segments = [Segment(*s) for s in zip(times, times[1:], phones, strict=False)]
    assert tidy(segments) == [(0, 0.2, "SIL"), (0.2, 0.3, "B"), (0.3, 0.4, "D")]


@pytest.mark.slow
def test_the_default_corpus_holds_every_phone(tmp_path):
    make_corpus(tmp_path / "corpus")
    for split, least in (("train", 100), ("dev-seen", 4), ("dev-unseen", 2)):
        segments = read_segments(tmp_path / "corpus" / split)
        count = Counter(s.phone for mine in segments.values() for s in mine)
        assert {phone: count[phone] for phone in PHONES if count[phone] < least} == {}
    lengths = [int(row["num_samples"]) for row in rows(tmp_path / "corpus/train/manifest.csv")]
    assert 0.6 < sum(lengths) / 16_000 / 3_600 < 0.8
