"""The command that trains a task: flags, errors in one line, exit status."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from spidr_jax.data.pipeline import BadDataError
from spidr_jax.train import config as config_lib
from spidr_jax.train import distributed, loop, preemption, programs, watchdog
from spidr_jax.train.config import RunConfig
from spidr_jax.train.config_file import innermost
from spidr_jax.train.monitors import NotFiniteError
from spidr_jax.train.task import Task

Schema = TypeVar("Schema", bound=RunConfig)


def main(
    schema: type[Schema], make_task: Callable[[Schema], Task], draw: Callable[[Path], None]
) -> None:
    """Run the command; it ends the program.

    Args:
        schema: the config's type.
        make_task: function from the checked config to the task.
        draw: writes a picture of a run into its folder, when it ends.
    """
    holder = config_flags.DEFINE_config_file("config", None, "The run's config file.")
    flags.mark_flag_as_required("config")

    def run(argv: Sequence[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        for name in ("absl", "asyncio"):  # they say at length what a failed save also raises
            getLogger(name).setLevel(CRITICAL)
        signal.signal(signal.SIGINT, preemption.raise_interrupt)
        with one_line_errors(ValueError, RuntimeError):
            distributed.start()
        with distributed.session():
            with one_line_errors(ValueError, OSError, ImportError):
                config = _resolve(schema, holder.value, argv)
                programs.use_cache(config.compilation_cache)
                task = make_task(config)
            with watchdog.watch(config.watchdog_seconds):
                return train(task, config, draw)

    try:
        app.run(run, flags_parser=_parse_flags)
    except KeyboardInterrupt:
        print("interrupted: the last checkpoint, if there is one, stays", file=sys.stderr)
        sys.exit(130)


def train(task: Task, config: RunConfig, draw: Callable[[Path], None]) -> int:
    """Open, restore and train a run; gives the exit status."""
    with one_line_errors(ValueError, OSError, ImportError):
        config_lib.set_jax_options(config)
        opened = loop.open_run(task, config)
        state = loop.build_state(opened)
    with one_line_errors(OSError, BadDataError, NotFiniteError):
        try:
            return loop.train(opened, state)
        finally:
            if distributed.is_first():
                draw(opened.folder)


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with one line for errors that are the user's to mend."""
    try:
        yield
    except kinds as error:
        nested = isinstance(error, LookupError | AttributeError)
        text = innermost(error) if nested else error
        sys.exit(f"error: {' '.join(str(text).split())}")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the flags; a field that the config does not have is no bug of ours either."""
    kinds = flags.Error, LookupError, AttributeError, TypeError, ValueError, SyntaxError
    with one_line_errors(*kinds):
        return flags.FLAGS(argv)


def _resolve(schema: type[Schema], values: ConfigDict, argv: Sequence[str]) -> Schema:
    """The checked config, with the default run folder filled in."""
    if len(argv) > 1:
        raise ValueError(f"left-over arguments {argv[1:]}: allowed are only --config flags")
    given: dict[str, Any] = dict(values.items())
    if not given.get("workdir"):
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        given["workdir"] = f"runs/{name}"
    return config_lib.build(schema, given)
