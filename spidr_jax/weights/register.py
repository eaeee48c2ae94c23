"""The option by which a command learns the names that a run's own code has registered."""

import argparse
import runpy


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --register FILE.py, which may be repeated; the files run as the line is parsed."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        type=_run,
        metavar="FILE.py",
        help="run a config file first, for the heads, metrics and other names that it adds",
    )


def _run(file: str) -> str:
    try:
        found = runpy.run_path(file)
        found.get("get_config", lambda: None)()
    except Exception as error:
        raise argparse.ArgumentTypeError(f"{file}: {type(error).__name__}: {error}") from error
    return file
