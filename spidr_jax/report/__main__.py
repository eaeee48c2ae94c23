"""Draw the page of one or several runs; runnable.

    python -m spidr_jax.report RUN [RUN ...] [--out report.html] [--no-model] [--layer N]
        [--register FILE.py]

One HTML page that opens offline: whether the run learns, its losses and perplexities over the
published curve, unit quality, the phone x unit matrix, then every metric, config and versions. The
newest checkpoint of each run is run on (at most 5 minutes of) its first evaluation set, for the
matrix, unless `--no-model`.

Exit code: 0, or 2 where the command could not be carried out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spidr_jax.data.files import local_path
from spidr_jax.report.page import write
from spidr_jax.weights import register


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spidr_jax.report")
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=local_path, help="a run's folder")
    add("--out", type=local_path, help="(default: RUN/report.html; of several runs: report.html)")
    add("--no-model", action="store_true", help="only what the runs' files tell")
    add("--layer", type=int, help="of the units shown (default: that of the highest PNMI)")
    register.add_option(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command above and give its exit code."""
    args = _parser().parse_args(arguments)
    out = args.out or (args.runs[0] if len(args.runs) == 1 else Path()) / "report.html"
    try:
        problems = write(args.runs, out, with_model=not args.no_model, layer=args.layer)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"warning: no picture of units: {problem}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
