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

from spidr_jax.bench import kernels, loader, loop, memory, scale, setups, steps, targets


def _run_data(args: argparse.Namespace) -> None:
    if min(args.threads) < 1:
        raise ValueError(f"--threads {min(args.threads)}: allowed is 1 or more, such as 1,2,4")
    try:
        rates = loader.bench_data(
            args.manifest,
            threads=args.threads,
            seconds=args.seconds,
            batch_samples=args.max_batch_samples,
            reference=args.reference,
        )
    except ValueError as error:  # a plan's, which names a config's field
        line = str(error).replace("data.max_batch_samples", "--max-batch-samples")
        raise ValueError(line) from None
    print(loader.table(rates))


def _write(path: str | None, found: Any) -> None:
    """Write all numbers, where they are asked for."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


def _run_scale(args: argparse.Namespace) -> None:
    demands = scale.bench_scale(
        args.config,
        devices=args.devices,
        samples=args.samples,
        rows=args.rows,
        fsdp=(False, True) if args.fsdp else (False,),
    )
    print(scale.table(demands, args.bandwidths))
    _write(args.json, [dataclasses.asdict(each) for each in demands])


def _run_step(args: argparse.Namespace) -> None:
    setup = setups.load(args.config, args.set, args.batch, args.samples)
    found = steps.bench_step(
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
    setup = setups.load(args.config, args.set, rows=1, samples=args.samples)
    machine = targets.find(args.target)
    name = "frozen" if args.frozen else "full"
    found = memory.bench_memory(
        {name: setup.step_config}, machine, samples=setup.samples, frozen=args.frozen
    )
    print(memory.table(found, machine, args.devices_gb, args.reserve, setup.samples))
    _write(args.json, [dataclasses.asdict(each) for each in found])


def _run_kernels(args: argparse.Namespace) -> None:
    setup = setups.load(args.config, args.set, args.batch, args.samples)
    found = kernels.bench_kernels(
        setup, targets.find(args.target), frozen=args.frozen, program=args.program
    )
    print(kernels.table(found, args.top))
    _write(args.json, found)


def _run_loop(args: argparse.Namespace) -> None:
    setup = setups.load(args.config, args.set, rows=1)
    found = loop.bench_loop(setup, args.steps)
    print(loop.table(found))
    _write(args.json, found)


def _add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="configs/base.py")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    command.add_argument("--samples", type=int, help="of an utterance")


def _add_target(command: argparse.ArgumentParser) -> None:
    names = ", ".join(targets.TARGETS)
    command.add_argument("--target", help=f"a device that need not be there: {names}; else JAX's")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.bench")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "step", help="time, arithmetic and memory of a step on one device"
    )
    command.set_defaults(run=_run_step)
    _add_setup(command)
    command.add_argument("--batch", type=int, help="utterances, else as many as the config allows")
    command.add_argument("--frozen", action="store_true", help="the phase from freeze_step on")
    command.add_argument("--reference", action="store_true", help="also the PyTorch reference")
    command.add_argument("--parts", action="store_true", help="also the parts of the step, alone")
    command.add_argument("--profile", metavar="DIR", help="trace some steps; the top kernels")
    command.add_argument("--steps", type=int, default=20, help="to time")
    command.add_argument("--json", help="a file for all numbers")
    command = commands.add_parser("memory", help="the batches that devices' memory holds")
    command.set_defaults(run=_run_memory)
    _add_setup(command)
    command.add_argument("--devices-gb", type=_numbers, default=[24, 40, 80])
    command.add_argument("--frozen", action="store_true", help="the phase from freeze_step on")
    command.add_argument(
        "--reserve",
        type=float,
        default=0.25,
        help="share to leave; JAX itself takes 75 %% of a GPU",
    )
    command.add_argument("--json", help="a file for all numbers, in bytes")
    _add_target(command)
    command = commands.add_parser("kernels", help="what a step compiles to, and what that may take")
    command.set_defaults(run=_run_kernels)
    _add_setup(command)
    command.add_argument("--batch", type=int, help="utterances, else as many as the config allows")
    command.add_argument("--frozen", action="store_true", help="the phase from freeze_step on")
    _add_target(command)
    command.add_argument("--top", type=int, default=25, metavar="N", help="groups of kernels")
    command.add_argument("--program", metavar="FILE", help="for the compiled program's text")
    command.add_argument("--json", help="a file for all numbers")
    command = commands.add_parser("loop", help="steps on files against steps on kept batches")
    command.set_defaults(run=_run_loop)
    command.add_argument("--config", default="configs/base.py")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    command.add_argument("--steps", type=int, default=40, help="of each, timed")
    command.add_argument("--json", help="a file for all numbers")
    command = commands.add_parser(
        "data", help="files to host batches, in seconds of audio a second"
    )
    command.set_defaults(run=_run_data)
    command.add_argument("--manifest", required=True)
    command.add_argument("--threads", type=_numbers, default=[1, 2], help="such as 1,2,4")
    command.add_argument("--seconds", type=float, default=5.0, help="for each line of the table")
    command.add_argument("--max-batch-samples", type=int, default=3_800_000)
    command.add_argument("--reference", action="store_true", help="also the reference's loader")
    command = commands.add_parser("scale", help="memory and traffic of a step on many devices")
    command.set_defaults(run=_run_scale)
    command.add_argument("--config", default="configs/base.py")
    command.add_argument("--devices", type=_numbers, default=[16, 64, 256])
    command.add_argument("--samples", type=int, default=235_600, help="of an utterance")
    command.add_argument("--rows", type=int, help="of a device, else the config's")
    command.add_argument("--fsdp", action="store_true", help="also with the state split")
    command.add_argument("--bandwidths", type=_numbers, default=[450, 50], help="of a device, GB/s")
    command.add_argument("--json", help="a file for all numbers, in bytes")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and give the exit code: 2 where it could not be run."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
