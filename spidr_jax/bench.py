"""Measure the parts that a run's speed depends on.

python -m spidr_jax.bench step [--config C] [--batch B] [--samples S] [--frozen] [--reference]
    [--parts] [--profile DIR] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench memory [--config C] [--samples S] [--devices-gb 24,40,80] [--frozen]
    [--reserve SHARE] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench loop [--config C] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench data --manifest M [--threads 1,2] [--seconds 5] [--reference]
python -m spidr_jax.bench scale [--config C] [--devices 16,64,256] [--samples S] [--fsdp]
"""

import argparse
import csv
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

from spidr_jax import bench_loop, bench_memory, bench_scale, bench_setup, bench_step
from spidr_jax.data import audio, pipeline
from spidr_jax.data.plan import make_plan
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
        num_rungs=8,
        max_batch_samples=batch_samples,
        planned_devices=1,
        seed=0,
    )
    with pipeline.batches(sources, plan, num_threads=threads) as batches:
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
    pipeline.probe(sources[0])
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


def _run_data(args: argparse.Namespace) -> None:
    rates = bench_data(
        args.manifest,
        threads=args.threads,
        seconds=args.seconds,
        batch_samples=args.max_batch_samples,
        reference=args.reference,
    )
    print(f"{'loader':<10} {'workers':>7} {'audio s/s':>10} {'per CPU s':>10}")
    for rate in rates:
        print(
            f"{rate.loader:<10} {rate.workers:>7} {rate.per_second:>10,.0f} "
            f"{rate.per_cpu_second:>10,.0f}"
        )


def _write(path: str | None, found: Any) -> None:
    """Write all numbers, where they are asked for."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


def _run_scale(args: argparse.Namespace) -> None:
    demands = bench_scale.bench_scale(
        args.config,
        devices=args.devices,
        samples=args.samples,
        rows=args.rows,
        fsdp=(False, True) if args.fsdp else (False,),
    )
    print(bench_scale.table(demands, args.bandwidths))
    _write(args.json, [dataclasses.asdict(each) for each in demands])


def _run_step(args: argparse.Namespace) -> None:
    setup = bench_setup.load(args.config, args.set, args.batch, args.samples)
    found = bench_step.bench_step(
        setup,
        frozen=args.frozen,
        steps=args.steps,
        reference=args.reference,
        parts=args.parts,
        profile=args.profile,
    )
    _write(args.json, found)


def _run_memory(args: argparse.Namespace) -> None:
    if not 0 <= args.reserve < 1:
        raise ValueError(f"reserve: {args.reserve}, allowed is a share from 0 to below 1")
    setup = bench_setup.load(args.config, args.set, rows=1, samples=args.samples)
    name = "frozen" if args.frozen else "full"
    found = bench_memory.bench_memory(
        {name: setup.step_config}, samples=setup.samples, frozen=args.frozen
    )
    print(bench_memory.table(found, args.devices_gb, args.reserve, setup.samples))
    _write(args.json, [dataclasses.asdict(each) for each in found])


def _run_loop(args: argparse.Namespace) -> None:
    setup = bench_setup.load(args.config, args.set, rows=1)
    found = bench_loop.bench_loop(setup, args.steps)
    print(bench_loop.table(found))
    _write(args.json, found)


def _add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="configs/base.py")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    command.add_argument("--samples", type=int, help="of an utterance")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and give the exit code: 2 where it could not be run."""
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.bench")
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="time, arithmetic and memory of a step on one device")
    step.set_defaults(run=_run_step)
    _add_setup(step)
    step.add_argument("--batch", type=int, help="utterances, else as many as the config allows")
    step.add_argument("--frozen", action="store_true", help="the phase from freeze_step on")
    step.add_argument("--reference", action="store_true", help="also the PyTorch reference")
    step.add_argument("--parts", action="store_true", help="also the parts of the step, alone")
    step.add_argument("--profile", metavar="DIR", help="trace some steps; the top kernels")
    step.add_argument("--steps", type=int, default=20, help="to time")
    step.add_argument("--json", help="a file for all numbers")
    memory = commands.add_parser("memory", help="the batches that devices' memory holds")
    memory.set_defaults(run=_run_memory)
    _add_setup(memory)
    memory.add_argument("--devices-gb", type=_numbers, default=[24, 40, 80])
    memory.add_argument("--frozen", action="store_true", help="the phase from freeze_step on")
    memory.add_argument(
        "--reserve",
        type=float,
        default=0.25,
        help="share to leave; JAX itself takes 75 %% of a GPU",
    )
    memory.add_argument("--json", help="a file for all numbers, in bytes")
    loop = commands.add_parser("loop", help="steps on files against steps on kept batches")
    loop.set_defaults(run=_run_loop)
    loop.add_argument("--config", default="configs/base.py")
    loop.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    loop.add_argument("--steps", type=int, default=40, help="of each, timed")
    loop.add_argument("--json", help="a file for all numbers")
    data = commands.add_parser("data", help="files to host batches, in seconds of audio a second")
    data.set_defaults(run=_run_data)
    data.add_argument("--manifest", required=True)
    data.add_argument("--threads", type=_numbers, default=[1, 2], help="such as 1,2,4")
    data.add_argument("--seconds", type=float, default=5.0, help="for each line of the table")
    data.add_argument("--max-batch-samples", type=int, default=3_800_000)
    data.add_argument("--reference", action="store_true", help="also the reference's loader")
    scale = commands.add_parser("scale", help="memory and traffic of a step on many devices")
    scale.set_defaults(run=_run_scale)
    scale.add_argument("--config", default="configs/base.py")
    scale.add_argument("--devices", type=_numbers, default=[16, 64, 256])
    scale.add_argument("--samples", type=int, default=235_600, help="of an utterance")
    scale.add_argument("--rows", type=int, help="of a device, else the config's")
    scale.add_argument("--fsdp", action="store_true", help="also with the state split")
    scale.add_argument("--bandwidths", type=_numbers, default=[450, 50], help="of a device, GB/s")
    scale.add_argument("--json", help="a file for all numbers, in bytes")
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
