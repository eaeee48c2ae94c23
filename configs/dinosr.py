"""DinoSR (arXiv 2305.10005) as the SpidR paper reproduces it: the baseline.

  python -m spidr_jax.main --config=configs/dinosr.py --config.data.manifest=train-960.csv

One student output feeds all heads, the teacher's decay grows linearly, layers are dropped.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.model.model_type = "dinosr"
    config.model.encoder_layer_drop = 0.05
    config.teacher.schedule = "linear"
    return config
