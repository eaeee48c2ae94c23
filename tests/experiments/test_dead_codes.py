"""Codes that get too few frames begin again at a frame of the batch: a function and an entry."""

from pathlib import Path

import driver

from spidr_jax.weights import orbax

EXPERIMENT = '''
import runpy
from pathlib import Path
import jax.numpy as jnp
from spidr_jax.method import codebook
from spidr_jax.method.codebook import CodebookState


def reseeded(config, state, batch, key):
    """A moving average of all codes; a count below 1 means dead (Jukebox, arXiv 2005.00341)."""
    old, new = config.decay, 1 - config.decay
    counts = old * state.counts + new * batch.counts
    sums = old * state.sums + new * batch.sums
    dead = counts < 1
    sums = jnp.where(dead[..., None], batch.candidates, sums)
    return CodebookState(sums, jnp.where(dead, 1, counts))


codebook.UPDATES["reseeded"] = reseeded


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.codebook.update_rule = "reseeded"
    return config
'''


def test_reseeded_codes(tmp_path: Path) -> None:
    saved = orbax.read(driver.run(tmp_path, EXPERIMENT), lambda name: name == "codebooks")
    assert saved.state["codebooks"]["counts"].min() >= 1
