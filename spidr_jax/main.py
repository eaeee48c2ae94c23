"""python -m spidr_jax.main --config=configs/base.py [--config.FIELD=VALUE ...]: train a model."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from spidr_jax import config as config_lib
from spidr_jax import train
from spidr_jax.data.toy import make_corpus

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")


def main(argv: Sequence[str]) -> int:
    """Check the config, make the embedded corpus if it names one, train."""
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    try:
        if len(argv) > 1:
            raise ValueError(f"left-over arguments {argv[1:]}: allowed are only --config flags")
        if not config.workdir:
            name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
            config.workdir = f"runs/{name}"
        config_lib.validate(config)
        if config.precision == "float32":
            jax.config.update("jax_default_matmul_precision", "float32")
        if config.data.embedded_corpus:
            make_corpus(config.data.embedded_corpus)
        run = train.open_run(config)
        state = train.build_state(run)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    try:
        return train.train(run, state)
    except OSError as error:
        sys.exit(f"error: {error}")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the flags; what is wrong with one ends in one line.

    absl itself does so only for values, not for a config file or field that does not exist.
    """
    try:
        return flags.FLAGS(argv)
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        text = " ".join(str(error.args[-1] if error.args else error).split())
        sys.exit(f"error: flags: {text}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
