"""The benchmark of the data pipeline: its table and its errors."""

import importlib.util
import itertools
import re

import pytest
import soundfile
from audio_files import make_corpus

from spidr_jax.bench import __main__ as bench
from spidr_jax.bench import loader
from spidr_jax.data.corpus import open_manifest


def test_the_table_has_a_line_for_each_thread_count(tmp_path, capsys):
    manifest, _ = make_corpus(tmp_path, 40)
    arguments = ["data", "--manifest", manifest, "--threads", "1,2", "--seconds", "0.3"]
    assert bench.main([*arguments, "--max-batch-samples", "60000"]) == 0
    header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["loader", "workers", "audio", "s/s", "per", "CPU", "s"]
    assert [line[:2] for line in lines] == [["spidr_jax", "1"], ["spidr_jax", "2"]]
    for line in lines:
        per_second, per_cpu_second = (float(number.replace(",", "")) for number in line[2:])
        assert 20 < per_second < 1e6
        assert 20 < per_cpu_second < 1e6


def test_a_rate_is_audio_by_time():
    def silence():
        while True:
            yield 160_000

    def spin():
        for count in silence():
            sum(range(100_000))
            yield count

    rate = loader.measure("spin", 1, 0.2, spin)
    # One thread that only computes: a second of it is a second of processor time, if it gets it.
    assert 0 < rate.per_second <= rate.per_cpu_second * 1.3


def test_what_cannot_be_measured_is_one_line(tmp_path, capsys):
    assert bench.main(["data", "--manifest", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.endswith("none.csv: there is no such manifest\n")
    manifest, _ = make_corpus(tmp_path, 2)
    assert bench.main(["data", "--manifest", manifest]) == 2
    said = capsys.readouterr().err
    assert re.search(r"\(--max-batch-samples 3800000 // \d+\); lower it, or add audio\n$", said)
    assert bench.main(["data", "--manifest", manifest, "--threads", "2,0"]) == 2
    assert capsys.readouterr().err == "--threads 0: allowed is 1 or more, such as 1,2,4\n"


@pytest.mark.skipif(
    importlib.util.find_spec("torchcodec") is not None, reason="the reference's loader is there"
)
def test_the_reference_without_what_it_needs_is_said(tmp_path, capsys):
    manifest, _ = make_corpus(tmp_path, 2)
    assert bench.main(["data", "--manifest", manifest, "--reference"]) == 2
    assert "No module named" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pipeline_costs_little_more_than_decoding(tmp_path):
    manifest, _ = make_corpus(tmp_path, 60, shortest=150_000, longest=250_000)
    rows = list(open_manifest(manifest))

    def decode():
        for row in itertools.cycle(rows):
            yield len(soundfile.read(row.path, dtype="int16")[0])

    plain = ours = 0.0
    for _ in range(3):  # in turn, and the best of each: others may use the machine
        plain = max(plain, loader.measure("soundfile", 1, 1.0, decode).per_cpu_second)
        (found,) = loader.bench_data(
            manifest, threads=[1], seconds=1.0, batch_samples=1_000_000, reference=False
        )
        ours = max(ours, found.per_cpu_second)
    # Cropping to a bucket leaves about a tenth of what is decoded unused.
    assert ours > 0.6 * plain
