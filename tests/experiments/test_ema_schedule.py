"""A teacher with another EMA schedule: a function and an entry."""

from pathlib import Path

import driver
import pytest

from spidr_jax.train import metrics

EXPERIMENT = '''
import runpy
from pathlib import Path
import jax.numpy as jnp
from spidr_jax.method import teacher


def cosine(config, step, freeze_step):
    """From the first EMA rate down to 0 at the freeze step, by half a cosine."""
    progress = jnp.minimum(step / freeze_step, 1)
    return (1 - config.decay) * (1 + jnp.cos(jnp.pi * progress)) / 2


teacher.SCHEDULES["cosine"] = cosine


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.teacher.schedule = "cosine"
    return config
'''


def test_cosine_teacher(tmp_path: Path) -> None:
    lines = metrics.read(driver.run(tmp_path, EXPERIMENT) / "metrics.jsonl")
    rates = [1 - line["teacher_decay"] for line in lines]
    assert rates == pytest.approx([7.5e-4, 2.5e-4, 0, 0, 0], abs=1e-7)
