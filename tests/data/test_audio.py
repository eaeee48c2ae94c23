"""Files to int16 and its standardisation, sound and broken ones."""

import os
import tarfile

import numpy as np
import pytest
import soundfile
from audio_files import BROKEN, RATE, hiss, pack, save, tone, truncate
from hypothesis import given, settings
from hypothesis import strategies as st

from spidr_jax.data import audio
from spidr_jax.data.corpus import Row, open_manifest
from spidr_jax.data.scan import write_manifest


def row_of(path, samples):
    return Row("u", str(path), samples)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_pcm_is_read_bit_for_bit(tmp_path, suffix):
    pcm = hiss(1, 20_000)
    got = audio.read_pcm(row_of(save(tmp_path / f"a{suffix}", pcm), 20_000))
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, pcm)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_wav_is_scaled_to_int16(tmp_path, subtype):
    pcm = hiss(2, 5000)
    path = save(tmp_path / "a.wav", pcm / 32768, subtype=subtype)
    np.testing.assert_array_equal(audio.read_pcm(row_of(path, 5000)), pcm)


def test_float_peaks_are_clipped_not_wrapped(tmp_path):
    path = save(tmp_path / "a.wav", np.array([1.5, -1.5, 0.5], "f4"), subtype="FLOAT")
    np.testing.assert_array_equal(audio.read_pcm(row_of(path, 3)), [32767, -32768, 16384])


@pytest.mark.parametrize("suffix", [".ogg", ".mp3", ".gsm.wav"])
def test_compressed_audio_is_on_the_same_scale(tmp_path, suffix):
    path = save(
        tmp_path / f"a{suffix}", tone(440, 1.0), subtype="GSM610" if "gsm" in suffix else None
    )
    got = audio.read_pcm(row_of(path, RATE))
    assert np.abs(got[4000:12000]).max() == pytest.approx(0.3 * 32768, rel=0.1)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_raise_an_error_that_names_them(tmp_path, kind):
    path = BROKEN[kind](tmp_path / "bad", hiss(3, 20_000))
    reasons = {
        "truncated_wav": "truncated: .* the manifest says 20000",
        "truncated_flac": "damaged: .*lost sync",
        "bit_flipped_flac": "damaged",
        "garbage": "cannot be read: .*not recognised",
        "empty": "cannot be read: the file is empty",
        "missing": "cannot be read: No such file",
        "wrong_rate": r"8000 Hz with 1 channel.*manifest prepare",
        "stereo": r"16000 Hz with 2 channel.*manifest prepare",
        "nan": "NaN or infinite",
        "unscaled": r"not within \[-1, 1\]",
    }
    with pytest.raises(audio.AudioError, match=f"(?s)bad.*{reasons[kind]}"):
        audio.read_pcm(row_of(path, 20_000))


def test_infinite_float_audio_is_refused(tmp_path):
    path = save(tmp_path / "a.wav", np.array([0.1, np.inf], "f4"), subtype="FLOAT")
    with pytest.raises(audio.AudioError, match="NaN or infinite"):
        audio.read_pcm(row_of(path, 2))


def test_streamed_flac_without_a_length_is_refused(tmp_path):
    path = save(tmp_path / "a.flac", hiss(4, 9000))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(audio.AudioError, match="no length in its header"):
        audio.read_pcm(row_of(path, 9000))


def test_a_longer_file_than_the_manifest_says_is_read_whole(tmp_path):
    path = save(tmp_path / "a.flac", hiss(5, 9000))
    assert len(audio.read_pcm(row_of(path, 8000))) == 9000


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
def test_members_of_a_tar_are_the_files(tmp_path, suffix):
    names = [f"{name}{suffix}" for name in "abc"]
    for number, name in enumerate(names):
        save(tmp_path / "in" / name, hiss(number, 7000 + 100 * number))
    tar = pack(tmp_path / "in", tmp_path / "all.tar")
    write_manifest(tar, str(tmp_path / "m.csv"))
    corpus = open_manifest(tmp_path / "m.csv")
    assert [row.path for row in corpus] == names
    for row in corpus:
        loose = audio.read_pcm(row_of(tmp_path / "in" / row.path, row.num_samples))
        np.testing.assert_array_equal(audio.read_pcm(row), loose)


CODECS = ["PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", None]


@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_member_is_not_read_on_into_the_next(tmp_path, codec):
    suffix = ".wav" if codec else ".flac"
    for number, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}{suffix}", hiss(number, 40_000) / 32768, subtype=codec)
    truncate(tmp_path / "in" / f"a{suffix}")
    tar = pack(tmp_path / "in", tmp_path / "all.tar")
    with tarfile.open(tar) as archive:
        member = archive.getmember(f"a{suffix}")
    row = Row("a", member.name, 40_000, tar, member.offset_data, member.size)
    with pytest.raises(audio.AudioError, match=r"all\.tar:a.*: (truncated|damaged)"):
        audio.read_pcm(row)
    with pytest.raises(audio.AudioError, match=r"all\.tar:a.*: cannot be read: .*not recognised"):
        audio.read_pcm(row._replace(byte_offset=member.offset_data - 100))
    with pytest.raises(audio.AudioError, match="the archive ends before it does"):
        audio.read_pcm(row._replace(byte_size=1 << 60))


@pytest.mark.parametrize(
    ("whole", "length"),
    [(36, 0), (8, 0), *((n, n) for n in (0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wav_header_written_to_a_pipe_is_measured_by_the_file(tmp_path, whole, length, packed):
    pcm = hiss(2, 9001)
    path = save(tmp_path / "in" / "a.wav", pcm)
    content = path.read_bytes()
    sizes = [size.to_bytes(4, "little") for size in (whole, length)]
    path.write_bytes(content[:4] + sizes[0] + content[8:40] + sizes[1] + content[44:])
    save(tmp_path / "in" / "b.wav", pcm)
    source = pack(tmp_path / "in", tmp_path / "all.tar") if packed else str(tmp_path / "in")
    assert write_manifest(source, str(tmp_path / "m.csv")).problems == []
    row = open_manifest(tmp_path / "m.csv").row(0)
    assert row.num_samples == 9001
    np.testing.assert_array_equal(audio.read_pcm(row), pcm)


def test_audio_far_longer_than_the_manifest_says_does_not_cost_its_memory(tmp_path):
    path = save(tmp_path / "a.flac", np.zeros(3_000_000, np.int16))
    with pytest.raises(audio.AudioError, match="3000000 samples in it, 5000 by the manifest"):
        audio.read_pcm(row_of(path, 5000))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 5000),
    offset=st.integers(-20_000, 20_000),
    scale=st.sampled_from([0, 1, 3, 300, 10_000]),
    seed=st.integers(0, 1000),
)
def test_standardisation_is_the_one_of_the_float_waveform(samples, offset, scale, seed):
    noise = np.random.default_rng(seed).standard_normal(samples) * scale + offset
    pcm = noise.clip(-32768, 32767).astype(np.int16)
    mean, inv_std = audio.standardisation(pcm)
    assert mean.dtype == inv_std.dtype == np.float32
    wave = pcm / 32768
    expected = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)
    got = (pcm.astype(np.float32) - mean) * inv_std
    # A float32 mean of up to 20,000 is good to 0.001, which 1 / sqrt(1e-5) / 32768 multiplies.
    np.testing.assert_allclose(got, expected, atol=3e-5)


def test_standardisation_of_half_a_minute_is_as_exact():
    pcm = hiss(8, 35 * RATE)
    mean, inv_std = audio.standardisation(pcm)
    wave = pcm / 32768
    assert mean == pytest.approx(32768 * wave.mean(), abs=1e-4)
    assert inv_std * 32768 == pytest.approx(1 / np.sqrt(wave.var() + 1e-5), rel=1e-6)


def test_audio_behind_a_url_is_read(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    pcm = hiss(9, 6000)
    content = save(tmp_path / "a.flac", pcm).read_bytes()
    files = fsspec.filesystem("memory")
    files.pipe_file("/corpus/a.flac", content)
    files.pipe_file("/corpus/all.tar", b"x" * 512 + content + b"y" * 999)
    loose = Row("a", "memory://corpus/a.flac", 6000)
    member = Row("a", "a.flac", 6000, "memory://corpus/all.tar", 512, len(content))
    for row in (loose, member):
        np.testing.assert_array_equal(audio.read_pcm(row), pcm)
    with pytest.raises(audio.AudioError, match=r"none\.flac: cannot be read"):
        audio.read_pcm(loose._replace(path="memory://corpus/none.flac"))


def test_a_url_without_its_file_system_says_what_to_install(monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def not_installed(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", not_installed)
    with pytest.raises(ImportError, match=r"gs://bucket/a.flac: .*install gcsfs"):
        audio.read_pcm(Row("a", "gs://bucket/a.flac", 6000))


def test_a_format_error_names_both_numbers(tmp_path):
    path = save(tmp_path / "a.wav", hiss(1, 100), 44_100)
    with soundfile.SoundFile(path) as sound, pytest.raises(audio.AudioError, match="44100 Hz"):
        audio.check_format(str(path), sound.samplerate, sound.channels)


@pytest.mark.parametrize("path", ["pipe", "/dev/zero", "a\0b.wav", "nothing://bucket/a.wav", "."])
def test_what_is_no_regular_file_is_a_bad_row(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(audio.AudioError, match="cannot be read"):
        audio.read_pcm(Row("a", path if "/" in path else str(tmp_path / path), 16_000))
