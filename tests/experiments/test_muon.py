"""Muon for matrices, AdamW for the rest: an optimizer and an entry."""

from pathlib import Path

import driver

EXPERIMENT = """
import runpy
from pathlib import Path
import jax
import optax
from spidr_jax.train import optim


def muon(config):
    label = lambda params: jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "other", params)
    axes = lambda params: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)
    kinds = {
        "matrix": optax.contrib.scale_by_muon(weight_dimension_numbers=axes),
        "other": optax.scale_by_adam(*config.betas, eps=config.eps),
    }
    clip = optax.clip_by_global_norm(config.max_norm)
    return optax.chain(clip, optax.partition(kinds, label), optim.descend(config))


optim.OPTIMIZERS["muon"] = muon


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.optimizer.name = "muon"
    return config
"""


def test_muon(tmp_path: Path) -> None:
    driver.run(tmp_path, EXPERIMENT)
