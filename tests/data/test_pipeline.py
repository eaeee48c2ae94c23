"""Plan and files to batches: the right samples, on any hosts and threads, past broken files."""

import logging
import threading
import time

import numpy as np
import pytest
from audio_files import BROKEN, hiss, make_corpus, pack, save, write_csv

from spidr_jax.data import pipeline, planned_audio
from spidr_jax.data.pipeline import BadDataError
from spidr_jax.data.plan import make_plan
from spidr_jax.data.planned_audio import PlannedAudio
from spidr_jax.data.scan import write_manifest
from spidr_jax.data.sources import Rows, open_sources

PLAN = {
    "min_samples": 2000,
    "max_samples": 28_000,
    "num_buckets": 3,
    "max_batch_samples": 60_000,
    "planned_devices": 4,
    "seed": 5,
}


def open_batches(sources, plan, num_threads=2, max_bad_share=0.01, **arguments):
    """The batches of a plan, with their data at hand."""
    data = PlannedAudio(sources, plan, num_threads=num_threads, max_bad_share=max_bad_share)
    batches = pipeline.batches(data, **arguments)
    batches.data = data
    return batches


class Data:
    """A corpus of 120 FLAC files, its plan, and the PCM to compare with."""

    def __init__(self, folder):
        self.manifest, self.sounds = make_corpus(folder, 120)
        self.sources = open_sources(self.manifest, None)
        self.plan = make_plan(self.sources, **PLAN)

    def read(self, **arguments):
        with open_batches(self.sources, self.plan, **arguments) as batches:
            return list(batches)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def broken(tmp_path):
    """A corpus of 60 files, one of each broken kind among them."""
    manifest, sounds = make_corpus(tmp_path, 50)
    rows = [(f"u{i}", f"u{i}.flac", len(sounds[f"u{i}"])) for i in range(50)]
    for number, (kind, make) in enumerate(BROKEN.items()):
        path = make(tmp_path / kind, hiss(number, 25_000))
        rows.insert(5 * number + 2, (kind, path.name, 25_000))
    write_csv(manifest, rows)
    sources = open_sources(manifest, None)
    return sources, make_plan(sources, **(PLAN | {"planned_devices": 1}))


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_hold_the_crops_that_the_plan_says(data):
    for step, batch in enumerate(data.read(stop=data.plan.batches_per_epoch)):
        planned = data.plan.batch(step)
        size = len(planned.rows)
        assert batch["waveforms"].dtype == np.int16
        assert batch["waveforms"].shape == (size, planned.num_samples)
        assert batch["mean"].shape == batch["inv_std"].shape == (size,)
        got = (batch["waveforms"] - batch["mean"][:, None]) * batch["inv_std"][:, None]
        for place, (row, offset) in enumerate(zip(planned.rows, planned.offsets, strict=True)):
            wave = data.sounds[f"u{row}"] / 32768
            whole = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)
            crop = whole[offset : offset + planned.num_samples]
            np.testing.assert_allclose(got[place], crop, atol=1e-5)


@pytest.mark.parametrize(("process_count", "num_threads"), [(1, 3), (2, 1), (4, 2)])
def test_hosts_and_threads_do_not_change_the_batches(data, process_count, num_threads):
    stop = data.plan.batches_per_epoch + 2
    alone = data.read(stop=stop, num_threads=1)
    hosts = [
        data.read(stop=stop, process_index=i, process_count=process_count, num_threads=num_threads)
        for i in range(process_count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]
    assert_equal(joined, alone)


def test_a_run_goes_on_where_it_stopped_across_an_epoch(data):
    stop = data.plan.batches_per_epoch + 3
    assert_equal(data.read(start=2, stop=stop), data.read(stop=stop)[2:])


def test_tar_and_loose_files_give_the_same_batches(data, tmp_path):
    folder = tmp_path / "loose"
    for fileid, pcm in data.sounds.items():
        save(folder / f"{fileid}.wav", pcm)
    loose, packed = str(tmp_path / "loose.csv"), str(tmp_path / "packed.csv")
    write_manifest(str(folder), loose)
    write_manifest(pack(folder, tmp_path / "all.tar"), packed)
    read = []
    for manifest in (loose, packed):
        sources = open_sources(manifest, None)
        plan = make_plan(sources, **PLAN)
        with open_batches(sources, plan, stop=plan.batches_per_epoch) as batches:
            read.append(list(batches))
    assert_equal(*read)


def test_put_runs_ahead_in_order_in_a_thread_of_its_own(data):
    put, threads = [], set()

    def remember(batch):
        put.append(batch["waveforms"].shape)
        threads.add(threading.get_ident())
        return len(put)

    with open_batches(data.sources, data.plan, put=remember, device_prefetch=2) as batches:
        assert next(batches) == 1
        deadline = time.monotonic() + 20
        while len(put) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(put) == 4  # one given, two ready, one waiting for room
        assert [next(batches) for _ in range(5)] == [2, 3, 4, 5, 6]
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert put[:6] == [(len(b.rows), b.num_samples) for b in map(data.plan.batch, range(6))]


def test_an_error_in_put_reaches_the_caller(data):
    def fail(batch):
        raise ValueError("no such device")

    batches = open_batches(data.sources, data.plan, put=fail)
    with batches, pytest.raises(ValueError, match="no such device"):
        next(batches)


def test_the_wait_for_a_batch_is_measured(data):
    def slow(batch):
        time.sleep(0.1)
        return batch

    with open_batches(data.sources, data.plan, put=slow, stop=2) as batches:
        next(batches)
        assert batches.data_wait >= 0.1
        time.sleep(0.5)
        next(batches)
        assert batches.data_wait < 0.1


def test_closing_ends_the_threads(data):
    before = set(threading.enumerate())
    batches = open_batches(data.sources, data.plan, num_threads=3)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 20
    while extra := [t for t in threading.enumerate() if t not in before and "next-" not in t.name]:
        assert time.monotonic() < deadline, extra
        time.sleep(0.01)
    with pytest.raises(StopIteration):
        next(batches)


# ---- broken files


def test_broken_files_are_replaced_counted_and_logged_once(broken, caplog):
    sources, plan = broken
    steps = 3 * plan.batches_per_epoch
    with open_batches(sources, plan, stop=steps, max_bad_share=1.0) as batches:
        shapes = [batch["waveforms"].shape for batch in batches]
        counts = batches.data.bad
    planned = [plan.batch(step) for step in range(steps)]
    assert shapes == [(len(b.rows), b.num_samples) for b in planned]
    rows = np.concatenate([b.rows for b in planned])
    names = {i: row.fileid for i, row in enumerate(sources[0].corpus) if row.fileid in BROKEN}
    expected = sum(np.count_nonzero(rows == index) for index in names)
    assert counts.rows_read == len(rows)
    assert counts.bad_rows == expected > len(BROKEN)
    logged = [r.args[0] for r in caplog.records if r.levelno == logging.WARNING]
    seen = {names[index] for index in names if index in rows}
    assert sorted(logged) == sorted(seen)
    assert len(seen) >= len(BROKEN) - 2
    worst, times = counts.worst_files(1)[0]
    assert any(kind in worst for kind in BROKEN)
    assert times > 1


def test_replacements_are_cropped_where_the_plan_says(tmp_path):
    manifest, sounds = make_corpus(tmp_path, 60, shortest=20_000)
    (tmp_path / "u7.flac").write_bytes(b"")
    sources = open_sources(manifest, None)
    plan = make_plan(sources, **PLAN)
    found = 0
    with open_batches(sources, plan, stop=2 * plan.batches_per_epoch) as batches:
        for step, batch in enumerate(batches):
            rows, size = plan.batch(step).rows, batch["waveforms"].shape[1]
            for place in np.flatnonzero(rows == 7):
                other = plan.replacement(step, 7, size, 0)
                offset = plan.crop(step, np.array([other]), size)[0]
                crop = sounds[f"u{other}"][offset : offset + size]
                np.testing.assert_array_equal(batch["waveforms"][place], crop)
                found += offset > 0
    assert found


def test_replacements_are_the_same_every_time(broken):
    sources, plan = broken
    runs = []
    for threads in (1, 3):
        with open_batches(
            sources, plan, stop=plan.batches_per_epoch, num_threads=threads, max_bad_share=1.0
        ) as batches:
            runs.append(list(batches))
    assert_equal(*runs)


def read_all(batches):
    for _ in batches:
        batches.data.check()


def test_too_many_broken_files_stop_the_run_by_name(broken):
    sources, plan = broken
    stop = 20 * plan.batches_per_epoch
    with (
        open_batches(sources, plan, stop=stop, max_bad_share=0.01) as batches,
        pytest.raises(BadDataError, match=r"more than data.max_bad_share 0.01; .*\(\d+ x\)") as e,
    ):
        read_all(batches)
    assert any(kind in str(e.value) for kind in BROKEN)


def test_a_single_broken_file_among_the_first_rows_does_not_stop_the_run():
    bad = planned_audio.BadRows(0.01)
    row = open_row("a")
    bad.count(20)
    for _ in range(10):
        bad.add(row, ValueError("broken"))
    bad.check()
    bad.add(row, ValueError("broken"))
    with pytest.raises(BadDataError, match="11 of 20 rows"):
        bad.check()


def test_no_broken_file_is_allowed_where_the_share_is_zero(broken):
    sources, plan = broken
    with (
        open_batches(sources, plan, stop=plan.batches_per_epoch, max_bad_share=0) as batches,
        pytest.raises(BadDataError, match=r"more than data.max_bad_share 0"),
    ):
        read_all(batches)


def open_row(fileid):
    from spidr_jax.data.corpus import Row

    return Row(fileid, f"/{fileid}.flac", 10_000)


@pytest.mark.parametrize(
    ("rate", "channels"), [(8000, 1), (44_100, 1), (16_000, 2)], ids=["8k", "44k", "stereo"]
)
def test_a_corpus_of_the_wrong_kind_fails_at_the_start(tmp_path, rate, channels):
    rows = []
    for number in range(40):
        pcm = np.repeat(hiss(number, 9000)[:, None], channels, axis=1)
        save(tmp_path / f"{number}.wav", pcm, rate)
        rows.append((number, f"{number}.wav", 9000))
    sources = open_sources(write_csv(tmp_path / "m.csv", rows), None)
    with pytest.raises(ValueError, match=rf"m\.csv: none of 8 .*0\.wav: {rate} Hz .*prepare") as e:
        planned_audio.probe(sources[0])
    assert "\n" not in str(e.value)


def test_a_corpus_whose_files_have_moved_fails_at_the_start(tmp_path):
    rows = [(number, f"gone/{number}.wav", 9000) for number in range(40)]
    sources = open_sources(write_csv(tmp_path / "m.csv", rows), None)
    with pytest.raises(ValueError, match=r"none of 8 files tried is usable; .*No such file"):
        planned_audio.probe(sources[0])


def test_files_that_vanish_later_stop_the_run_without_hanging(tmp_path):
    manifest, sounds = make_corpus(tmp_path, 60)
    sources = open_sources(manifest, None)
    plan = make_plan(sources, **PLAN)
    with open_batches(sources, plan, num_threads=1) as batches:
        next(batches)
        for fileid in sounds:
            (tmp_path / f"{fileid}.flac").unlink()
        with pytest.raises(BadDataError, match="replacements"):
            list(batches)


# ---- sources


def test_weighted_sources_are_read_from_their_own_files(tmp_path):
    one, _ = make_corpus(tmp_path / "one", 60, seed=1)
    other, _ = make_corpus(tmp_path / "other", 90, ".wav", seed=2)
    sources = open_sources(None, f"one:{one}:1,other:{other}:3")
    plan = make_plan(sources, **PLAN)
    assert "one 25.0% of the audio" in plan.describe()
    with open_batches(sources, plan, stop=plan.batches_per_epoch) as batches:
        read = list(batches)
        assert batches.data.bad_rows() == 0
    planned = [plan.batch(step) for step in range(plan.batches_per_epoch)]
    assert {int(row) >= 60 for batch in planned for row in batch.rows} == {False, True}
    rows = Rows(sources)
    for batch, plan_batch in zip(read, planned, strict=True):
        row = rows[int(plan_batch.rows[-1])]
        assert row.num_samples >= batch["waveforms"].shape[1]
        assert ("other" in row.path) == (plan_batch.rows[-1] >= 60)


@pytest.mark.parametrize(
    ("manifest", "sources", "reason"),
    [
        ("a.csv", "en:a.csv:1", "data.manifest and data.sources are both set"),
        (None, "", "neither data.manifest nor data.sources is set"),
    ],
)
def test_one_of_manifest_and_sources_is_set(manifest, sources, reason):
    with pytest.raises(ValueError, match=reason):
        open_sources(manifest, sources)
