"""Cross-entropy with smoothed labels: a function and an entry."""

from pathlib import Path

import driver

EXPERIMENT = '''
import runpy
from pathlib import Path
from spidr_jax.method import loss


def smoothed(config, log_probs, assignments):
    """A tenth of each frame's label goes to all codes alike."""
    counted = assignments.sum(axis=-1, keepdims=True)
    labels = 0.9 * assignments + 0.1 * counted / assignments.shape[-1]
    return -(labels * log_probs).sum(axis=(1, 2))


loss.LOSSES["smoothed"] = smoothed


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.loss.name = "smoothed"
    return config
'''


def test_label_smoothing(tmp_path: Path) -> None:
    driver.run(tmp_path, EXPERIMENT)
