"""Manifests that are checked, and audio that is prepared."""

import subprocess
import sys
import tarfile

import librosa
import numpy as np
import pytest
import soundfile
from audio_files import BROKEN, RATE, hiss, make_corpus, run, save, tone, write, write_csv

from spidr_jax.data import prepare as prepare_module
from spidr_jax.data.audio import read_pcm
from spidr_jax.data.check import check_manifest
from spidr_jax.data.corpus import Row, open_manifest
from spidr_jax.data.prepare import prepare

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
