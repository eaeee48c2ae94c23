"""How fast the data pipeline makes batches of files, beside the reference's loader."""

import csv
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import NamedTuple

from spidr_jax.data import audio, pipeline
from spidr_jax.data.plan import make_plan
from spidr_jax.data.planned_audio import PlannedAudio, probe
from spidr_jax.data.sources import Source, open_sources

_MIN_SAMPLES, _MAX_SAMPLES = 2_000, 320_000  # of the published recipe


class Rate(NamedTuple):
    """A line of the table: seconds of audio per second, and per second of processor time."""

    loader: str
    workers: int
    per_second: float
    per_cpu_second: float


def _cpu_seconds() -> float:
    spent = os.times()  # threads, and children that have ended
    return spent.user + spent.system + spent.children_user + spent.children_system


def measure(
    name: str, workers: int, seconds: float, sizes: Callable[[], Generator[int, None, None]]
) -> Rate:
    """Time a loader for some seconds, from after its first batch.

    Args:
        name: for the table.
        workers: for the table.
        seconds: to run.
        sizes: starts the loader and gives the samples in each batch, without end.
    """
    batches = sizes()
    next(batches)  # what starts up, does so for the first batch
    start, cpu, samples, elapsed = time.perf_counter(), _cpu_seconds(), 0, 0.0
    while elapsed < seconds:
        samples += next(batches)
        elapsed = time.perf_counter() - start
    batches.close()  # ends its workers, whose processor time counts only then
    heard = samples / audio.SAMPLE_RATE
    return Rate(name, workers, heard / elapsed, heard / (_cpu_seconds() - cpu))


def _ours(
    sources: Sequence[Source], batch_samples: int, threads: int
) -> Generator[int, None, None]:
    plan = make_plan(
        sources,
        min_samples=_MIN_SAMPLES,
        max_samples=_MAX_SAMPLES,
        num_buckets=8,
        max_batch_samples=batch_samples,
        planned_devices=1,
        seed=0,
        warn=False,  # of audio that stays unused: its advice is for a run
    )
    with pipeline.batches(PlannedAudio(sources, plan, num_threads=threads)) as batches:
        for batch in batches:
            yield batch["waveforms"].size


def _reference(manifest: str, batch_samples: int, workers: int) -> Generator[int, None, None]:
    from spidr.config import DataConfig, MaskingConfig
    from spidr.data import build_dataloader

    config = DataConfig(
        manifest=manifest,
        max_batch_length=batch_samples,
        num_workers=workers,
        pin_memory=False,  # there need be no GPU
    )
    loader = build_dataloader(config, MaskingConfig())
    for waveforms, *_ in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield waveforms.numel()


def _write_absolute(source: Source, path: str) -> None:
    """Write a manifest that the reference, which knows no relative paths, reads."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = ["fileid", "path", "num_samples"]
        in_archive = bool(source.corpus.row(0).archive)
        writer.writerow(names + ["archive", "byte_offset", "byte_size"] * in_archive)
        for row in source.corpus:
            writer.writerow(row[: 6 if in_archive else 3])


def bench_data(
    manifest: str,
    *,
    threads: Sequence[int],
    seconds: float,
    batch_samples: int,
    reference: bool,
) -> list[Rate]:
    """Measure the pipeline, and beside it the reference's loader (which also draws the masks).

    Raises:
        ImportError: the reference's loader (or what it needs) is not installed.
        FileNotFoundError, ValueError: as the manifest and the plan raise them.
    """
    sources = open_sources(manifest, None)
    probe(sources[0])
    rates = []
    if reference:  # first: its workers are forked, which threads of ours would not survive
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "manifest.csv")
            _write_absolute(sources[0], path)
            rates = [
                measure("reference", n, seconds, partial(_reference, path, batch_samples, n))
                for n in threads
            ]
    return rates + [
        measure("spidr_jax", n, seconds, partial(_ours, sources, batch_samples, n)) for n in threads
    ]


def table(rates: Sequence[Rate]) -> str:
    """A line for each loader and number of workers."""
    lines = [f"{'loader':<10} {'workers':>7} {'audio s/s':>10} {'per CPU s':>10}"]
    lines += [
        f"{rate.loader:<10} {rate.workers:>7} {rate.per_second:>10,.0f} "
        f"{rate.per_cpu_second:>10,.0f}"
        for rate in rates
    ]
    return "\n".join(lines)
