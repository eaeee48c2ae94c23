"""Spans of another law of lengths: a function and an entry."""

from pathlib import Path

import driver

EXPERIMENT = '''
import runpy
from pathlib import Path
import jax
from spidr_jax.method import masking


def geometric(key, number, config):
    """Spans that end at each frame with the same probability."""
    return jax.random.geometric(key, 1 / config.mask_length, (number,))


masking.SPAN_LAWS["geometric"] = geometric


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.masking.mask_selection = "geometric"
    return config
'''


def test_geometric_spans(tmp_path: Path) -> None:
    driver.run(tmp_path, EXPERIMENT)
