"""Plan one config under several values and seeds, and compare its runs; runnable.

    python -m spidr_jax.study --config C --out DIR [--vary FIELD=V1,V2,... ...] [--seeds N]
        [--set FIELD=VALUE ...] [--commands] [--register FILE.py]
    python -m spidr_jax.study --out DIR

Every combination of the values is a setting and has N runs, DIR/NAME. A comma in brackets or
quotes belongs to its value: --vary "optimizer.betas=(0.9,0.95),(0.9,0.99)".

`--commands` prints the command of each run that is not finished, one a line, for a shell
(`| sh`), several at a time (`| xargs -d '\\n' -n 1 -P 4 sh -c`), or line N of them for task N of a
job array. A run that was stopped goes on, so the same line may be given again after a failure.

Without it, the runs that are there are compared: mean ± standard deviation over the finished runs
of a setting; of PNMI and ABX that of the layer with the best mean. DIR/study.json has them of all
layers, DIR/study.csv a row a run.

Exit code: 0, or 2 where the command could not be carried out.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spidr_jax.data.files import local_path, replacing
from spidr_jax.study import table
from spidr_jax.study.plan import PlannedRun, Study, plan, read_fields, split
from spidr_jax.study.runs import outcome
from spidr_jax.train import config as config_lib
from spidr_jax.weights import register


def read(out: Path) -> Study | None:
    """The study of a folder, None where there is none.

    Raises:
        ValueError: its file is damaged.
    """
    path = out / "study.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        runs = [PlannedRun(*(run[name] for name in PlannedRun._fields)) for run in found["runs"]]
        return Study(found["config"], found["vary"], found["seeds"], runs)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is damaged: {error!r}") from None


def write(out: Path, study: Study) -> str:
    """Write study.json and study.csv, as far as the runs are; gives the table for the terminal."""
    outcomes = [outcome(out, run) for run in study.runs]
    rows = table.compare(study.runs, outcomes)
    results = {run.name: found.status for run, found in zip(study.runs, outcomes, strict=True)}
    told: dict[str, Any] = study._asdict() | {"runs": [run._asdict() for run in study.runs]}
    told |= {"status": results, "comparison": table.as_dicts(rows)}
    files = {"study.json": json.dumps(told, indent=2) + "\n"}
    files["study.csv"] = table.as_csv(study.runs, outcomes)
    for name, content in files.items():
        with replacing(out / name) as partial:
            partial.write_text(content, encoding="utf-8")
    left = [f"{name}: {status}" for name, status in results.items() if status != "finished"]
    return "\n".join([table.text(rows), *left])


def check_same(out: Path, study: Study) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ValueError: naming what differs.
    """
    known = read(out)
    if known is None:
        if any(out.iterdir()):
            raise ValueError(f"--out {out}: is not empty and holds no study; choose another one")
        return
    differing = config_lib.differences(known.config, study.config)
    for name in ("vary", "seeds"):
        old, new = getattr(known, name), getattr(study, name)
        if old != new:
            differing.append(f"--{name} was {old} and is {new}")
    if differing:
        raise ValueError(f"--out {out} holds another study: {'; '.join(differing)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.study")
    add = parser.add_argument
    add("--config", metavar="C", help="the config file; without it, what is there is compared")
    add("--out", required=True, type=local_path, metavar="DIR", help="the study's folder")
    add("--vary", action="append", default=[], metavar="FIELD=V1,V2", help="may stand repeatedly")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="of all runs")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each setting (default: 3)")
    add("--commands", action="store_true", help="print the commands of unfinished runs")
    register.add_option(parser)
    return parser


def _planned(args: argparse.Namespace) -> Study:
    vary = {field: split(text) for field, text in read_fields(args.vary, "--vary").items()}
    study = plan(args.config, vary, read_fields(args.set, "--set"), args.seeds, str(args.out))
    args.out.mkdir(parents=True, exist_ok=True)
    check_same(args.out, study)
    return study


def _run(args: argparse.Namespace) -> None:
    if args.config is None and (args.vary or args.set or args.commands):
        raise ValueError("--config is missing")
    study = _planned(args) if args.config else read(args.out)
    if study is None:
        raise ValueError(f"--out {args.out}: there is no study.json")
    compared = write(args.out, study)
    if not args.commands:
        print(compared)
        return
    for run in study.runs:
        if not outcome(args.out, run).finished:
            print(shlex.join(run.command))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command above and give its exit code."""
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
