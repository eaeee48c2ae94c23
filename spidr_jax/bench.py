"""Measure the parts that a run's speed depends on.

python -m spidr_jax.bench step [--config C] [--batch B] [--samples S] [--frozen] [--reference]
    [--parts] [--profile DIR] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench memory [--config C] [--samples S] [--devices-gb 24,40,80] [--frozen]
    [--reserve SHARE] [--target T] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench kernels [--config C] [--batch B] [--samples S] [--frozen] [--target T]
    [--top N] [--program FILE] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench loop [--config C] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench data --manifest M [--threads 1,2] [--seconds 5] [--reference]
python -m spidr_jax.bench scale [--config C] [--devices 16,64,256] [--samples S] [--fsdp]
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from spidr_jax import (
    bench_data,
    bench_kernels,
    bench_loop,
    bench_memory,
    bench_scale,
    bench_setup,
    bench_step,
    bench_target,
)


def _run_data(args: argparse.Namespace) -> None:
    rates = bench_data.bench_data(
        args.manifest,
        threads=args.threads,
        seconds=args.seconds,
        batch_samples=args.max_batch_samples,
        reference=args.reference,
    )
    print(bench_data.table(rates))


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
    machine = bench_target.find(args.target)
    name = "frozen" if args.frozen else "full"
    found = bench_memory.bench_memory(
        {name: setup.step_config}, machine, samples=setup.samples, frozen=args.frozen
    )
    print(bench_memory.table(found, machine, args.devices_gb, args.reserve, setup.samples))
    _write(args.json, [dataclasses.asdict(each) for each in found])


def _run_kernels(args: argparse.Namespace) -> None:
    setup = bench_setup.load(args.config, args.set, args.batch, args.samples)
    found = bench_kernels.bench_kernels(
        setup, bench_target.find(args.target), frozen=args.frozen, program=args.program
    )
    print(bench_kernels.table(found, args.top))
    _write(args.json, found)


def _run_loop(args: argparse.Namespace) -> None:
    setup = bench_setup.load(args.config, args.set, rows=1)
    found = bench_loop.bench_loop(setup, args.steps)
    print(bench_loop.table(found))
    _write(args.json, found)


def _add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="configs/base.py")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    command.add_argument("--samples", type=int, help="of an utterance")


def _add_target(command: argparse.ArgumentParser) -> None:
    names = ", ".join(bench_target.TARGETS)
    command.add_argument("--target", help=f"a device that need not be there: {names}; else JAX's")


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
    _add_target(memory)
    kernels = commands.add_parser("kernels", help="what a step compiles to, and what that may take")
    kernels.set_defaults(run=_run_kernels)
    _add_setup(kernels)
    kernels.add_argument("--batch", type=int, help="utterances, else as many as the config allows")
    kernels.add_argument("--frozen", action="store_true", help="the phase from freeze_step on")
    _add_target(kernels)
    kernels.add_argument("--top", type=int, default=25, metavar="N", help="groups of kernels")
    kernels.add_argument("--program", metavar="FILE", help="for the compiled program's text")
    kernels.add_argument("--json", help="a file for all numbers")
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
