"""python -m spidr_jax.main --config=configs/base.py [--config.FIELD=VALUE ...]: train a model."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from spidr_jax.data.pipeline import BadDataError
from spidr_jax.report import draw
from spidr_jax.toy import make_corpus
from spidr_jax.train import config as config_lib
from spidr_jax.train import distributed, watchdog
from spidr_jax.train import loop as train
from spidr_jax.train import preemption as stop
from spidr_jax.train import programs as compilation
from spidr_jax.train.monitors import NotFiniteError

CORPUS_SECONDS = 1800  # that the other processes wait for the one that makes the corpus

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with one line for errors that are the user's to mend."""
    try:
        yield
    except kinds as error:
        nested = isinstance(error, LookupError | AttributeError)
        text = config_lib.innermost(error) if nested else error
        sys.exit(f"error: {' '.join(str(text).split())}")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the flags; a field that the config does not have is no bug of ours either."""
    kinds = flags.Error, LookupError, AttributeError, TypeError, ValueError, SyntaxError
    with one_line_errors(*kinds):
        return flags.FLAGS(argv)


def resolve(argv: Sequence[str]) -> ConfigDict:
    """The checked config, with the default run folder filled in."""
    config = _CONFIG.value
    if len(argv) > 1:
        raise ValueError(f"left-over arguments {argv[1:]}: allowed are only --config flags")
    if not config.workdir:
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        config.workdir = f"runs/{name}"
    config_lib.validate(config)
    return config


def main(argv: Sequence[str]) -> int:
    """Join the other processes, check the config, make the corpus if it is embedded, train."""
    logging.set_verbosity(logging.WARNING)
    _hush_threads()
    signal.signal(signal.SIGINT, stop.raise_interrupt)
    with one_line_errors(ValueError, RuntimeError):
        distributed.start()
    with distributed.session():
        with one_line_errors(ValueError, OSError, ImportError):
            config = resolve(argv)
            compilation.use_cache(config.compilation_cache)
            if config.data.embedded_corpus:
                if distributed.is_first():
                    make_corpus(config.data.embedded_corpus)
                distributed.barrier("the embedded corpus", CORPUS_SECONDS)
        with watchdog.watch(config.watchdog_seconds):
            return run(config)


def _hush_threads() -> None:
    """Orbax's and TensorStore's threads say at length what a failed save also raises."""
    for name in ("absl", "asyncio"):
        getLogger(name).setLevel(CRITICAL)
    show = sys.unraisablehook

    def unless_of_closed_loop(seen: Any) -> None:
        if str(seen.exc_value) != "Event loop is closed":
            show(seen)

    sys.unraisablehook = unless_of_closed_loop


def run(config: ConfigDict) -> int:
    """Open, restore and train a run; gives the exit status."""
    with one_line_errors(ValueError, OSError, ImportError):
        config_lib.set_jax_options(config)
        opened = train.open_run(config)
        state = train.build_state(opened)
    with one_line_errors(OSError, BadDataError, NotFiniteError):
        try:
            return train.train(opened, state)
        finally:
            if distributed.is_first():
                draw(opened.folder)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:
        print("interrupted: the last checkpoint, if there is one, stays", file=sys.stderr)
        sys.exit(130)
