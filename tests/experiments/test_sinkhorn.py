"""Soft assignments that use all codes alike, by Sinkhorn: a function and an entry."""

from pathlib import Path

import driver

from spidr_jax.train import metrics

EXPERIMENT = '''
import runpy
from pathlib import Path
import jax
import jax.numpy as jnp
from spidr_jax.method import codebook


def sinkhorn(config, state, targets, mask):
    """Transport of frames to codes with equal shares (SwAV, arXiv 2006.09882, section 3.1)."""
    similarity = -codebook.distances(state, targets) / targets.shape[-1]
    logits = jnp.where(mask[:, None], similarity / 0.1, -jnp.inf)
    for _ in range(5):
        logits -= jax.nn.logsumexp(logits, axis=1, keepdims=True)
        logits -= jnp.where(mask[:, None], jax.nn.logsumexp(logits, axis=2, keepdims=True), 0)
    return jnp.exp(logits)


codebook.ASSIGNMENTS["sinkhorn"] = sinkhorn


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.codebook.assignment = "sinkhorn"
    return config
'''


def test_sinkhorn_assignment(tmp_path: Path) -> None:
    lines = metrics.read(driver.run(tmp_path, EXPERIMENT) / "metrics.jsonl")
    assert min(line["target_ppl"] for line in lines) > 7.9  # of 8 codes
