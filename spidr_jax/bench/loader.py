"""Speed of the data pipeline, from files to batches."""

import os
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from spidr_jax.data import audio, pipeline
from spidr_jax.data.plan import make_plan
from spidr_jax.data.planned_audio import PlannedAudio, probe
from spidr_jax.data.sources import Source, open_sources

_MIN_SAMPLES, _MAX_SAMPLES = 2_000, 320_000  # of the published recipe


class Rate(NamedTuple):
    """Seconds of audio per second, and per second of processor time."""

    per_second: float
    per_cpu_second: float


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system


def measure(batches: Generator[int, None, None], seconds: float) -> Rate:
    """Time a loader, which gives the samples in each batch, from after its first batch."""
    next(batches)  # what starts up, does so for the first batch
    start, cpu, samples, elapsed = time.perf_counter(), _cpu_seconds(), 0, 0.0
    while elapsed < seconds:
        samples += next(batches)
        elapsed = time.perf_counter() - start
    batches.close()
    heard = samples / audio.SAMPLE_RATE
    return Rate(heard / elapsed, heard / (_cpu_seconds() - cpu))


def _batch_sizes(
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


def bench_data(
    manifest: str, threads: Sequence[int], seconds: float, batch_samples: int
) -> list[Rate]:
    """Measure the pipeline with each number of threads; prints a line of a table for each.

    Raises:
        FileNotFoundError, ValueError: as the manifest and the plan raise them.
    """
    sources = open_sources(manifest, None)
    probe(sources[0])
    rates = []
    print(f"{'threads':>7} {'audio s/s':>10} {'per CPU s':>10}")
    for number in threads:
        rate = measure(_batch_sizes(sources, batch_samples, number), seconds)
        print(f"{number:>7} {rate.per_second:>10,.0f} {rate.per_cpu_second:>10,.0f}")
        rates.append(rate)
    return rates
