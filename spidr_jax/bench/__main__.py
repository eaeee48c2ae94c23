"""Measure what a run's speed depends on.

python -m spidr_jax.bench step [--config C] [--batch B] [--samples S] [--frozen] [--reference]
    [--profile DIR] [--steps N] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench memory [--config C] [--samples S] [--devices-gb 24,40,80] [--frozen]
    [--target T] [--set FIELD=VALUE] [--json FILE]
python -m spidr_jax.bench data --manifest M [--threads 1,2] [--seconds 5] [--max-batch-samples N]
    [--json FILE]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from spidr_jax.bench import loader, memory, setups, steps, targets


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
    setup = setups.load(args.config, args.set, rows=1, samples=args.samples)
    machine = targets.find(args.target)
    found = memory.bench_memory(setup, machine, args.frozen)
    print(memory.table(found, machine, args.devices_gb, setup.samples))
    return found._asdict()


def _run_data(args: argparse.Namespace) -> list[dict[str, float]]:
    if min(args.threads) < 1:
        raise ValueError(f"--threads {min(args.threads)}: allowed is 1 or more, such as 1,2,4")
    try:
        sizes = args.seconds, args.max_batch_samples
        return [rate._asdict() for rate in loader.bench_data(args.manifest, args.threads, *sizes)]
    except ValueError as error:  # a plan's, which names a config's field
        line = str(error).replace("data.max_batch_samples", "--max-batch-samples")
        raise ValueError(line) from None


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    config = argparse.ArgumentParser(add_help=False)
    option = config.add_argument
    option("--config", default="configs/base.py")
    option("--set", action="append", default=[], metavar="FIELD=VALUE")
    option("--samples", type=int, help="of an utterance")
    option("--frozen", action="store_true", help="the phase from freeze_step on")

    parser = argparse.ArgumentParser(prog="python -m spidr_jax.bench")
    commands = parser.add_subparsers(required=True)

    about = "time, arithmetic and memory of a step on one device"
    command = commands.add_parser("step", help=about, parents=[config])
    command.set_defaults(run=_run_step)
    option = command.add_argument
    option("--batch", type=int, help="utterances, else as many as the config allows")
    option("--reference", action="store_true", help="also the PyTorch reference")
    option("--profile", metavar="DIR", help="trace some steps; a GPU's or TPU's time by part")
    option("--steps", type=int, default=20, help="to time")

    about = "the batches that devices' memory holds"
    command = commands.add_parser("memory", help=about, parents=[config])
    command.set_defaults(run=_run_memory)
    option = command.add_argument
    option("--devices-gb", type=_numbers, default=[24, 40, 80])
    names = ", ".join(targets.TARGETS)
    option("--target", help=f"a device that need not be there: {names}; else JAX's")

    about = "files to host batches, in seconds of audio a second"
    command = commands.add_parser("data", help=about)
    command.set_defaults(run=_run_data)
    option = command.add_argument
    option("--manifest", required=True)
    option("--threads", type=_numbers, default=[1, 2], help="such as 1,2,4")
    option("--seconds", type=float, default=5.0, help="for each line of the table")
    option("--max-batch-samples", type=int, default=3_800_000)

    for command in commands.choices.values():
        command.add_argument("--json", help="a file for all numbers, sizes in bytes")
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
