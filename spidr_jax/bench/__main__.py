"""Measure what a run's speed depends on.

python -m spidr_jax.bench step [--config C] [--batch B] [--samples S] [--frozen] [--reference]
    [--profile DIR] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench memory [--config C] [--samples S] [--devices-gb 24,40,80] [--frozen]
    [--reserve SHARE] [--target T] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench loop [--config C] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench data --manifest M [--threads 1,2] [--seconds 5] [--reference]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from spidr_jax.bench import loader, loop, memory, setups, steps, targets


def _run_step(args: argparse.Namespace) -> dict[str, Any]:
    setup = setups.load(args.config, args.set, args.batch, args.samples)
    return steps.bench_step(
        setup,
        frozen=args.frozen,
        steps=args.steps,
        reference=args.reference,
        profile=args.profile,
    )


def _run_memory(args: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= args.reserve < 1:
        raise ValueError(f"reserve: {args.reserve}, allowed is a share from 0 to below 1")
    setup = setups.load(args.config, args.set, rows=1, samples=args.samples)
    machine = targets.find(args.target)
    found = memory.bench_memory(setup, machine, args.frozen)
    print(memory.table(found, machine, args.devices_gb, args.reserve, setup.samples))
    return found._asdict()


def _run_loop(args: argparse.Namespace) -> dict[str, Any]:
    found = loop.bench_loop(setups.load(args.config, args.set, rows=1), args.steps)
    print(loop.table(found))
    return found


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


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.bench")
    commands = parser.add_subparsers(required=True)

    def add(name: str, run: Callable[..., Any], about: str) -> Callable[..., Any]:
        command = commands.add_parser(name, help=about)
        command.set_defaults(run=run, json=None)
        return command.add_argument

    def add_config(option: Callable[..., Any]) -> None:
        option("--config", default="configs/base.py")
        option("--set", action="append", default=[], metavar="FIELD=VALUE")
        option("--json", help="a file for all numbers, sizes in bytes")

    def add_shape(option: Callable[..., Any]) -> None:
        option("--samples", type=int, help="of an utterance")
        option("--frozen", action="store_true", help="the phase from freeze_step on")

    option = add("step", _run_step, "time, arithmetic and memory of a step on one device")
    add_config(option)
    add_shape(option)
    option("--batch", type=int, help="utterances, else as many as the config allows")
    option("--reference", action="store_true", help="also the PyTorch reference")
    option("--profile", metavar="DIR", help="trace some steps; the parts of the model")
    option("--steps", type=int, default=20, help="to time")

    option = add("memory", _run_memory, "the batches that devices' memory holds")
    add_config(option)
    add_shape(option)
    option("--devices-gb", type=_numbers, default=[24, 40, 80])
    option(
        "--reserve",
        type=float,
        default=0.25,
        help="share to leave; JAX itself takes 75 %% of a GPU",
    )
    names = ", ".join(targets.TARGETS)
    option("--target", help=f"a device that need not be there: {names}; else JAX's")

    option = add("loop", _run_loop, "steps on files against steps on kept batches")
    add_config(option)
    option("--steps", type=int, default=40, help="of each, timed")

    option = add("data", _run_data, "files to host batches, in seconds of audio a second")
    option("--manifest", required=True)
    option("--threads", type=_numbers, default=[1, 2], help="such as 1,2,4")
    option("--seconds", type=float, default=5.0, help="for each line of the table")
    option("--max-batch-samples", type=int, default=3_800_000)
    option("--reference", action="store_true", help="also the reference's loader")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and give the exit code: 2 where it could not be run."""
    args = _parser().parse_args(arguments)
    try:
        found = args.run(args)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=2)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
