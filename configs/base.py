"""SpidR base: the published recipe (arXiv 2512.20308, section 4), LibriSpeech 960 h.

  python -m spidr_jax.main --config=configs/base.py --config.data.manifest=train-960.csv

Planned for 16 GPUs of 80 GB, 237.5 s of audio each a step. On fewer, set data.planned_devices to
their number (a smaller batch than the published one). The published run took 15 h on 16 H100 with
the PyTorch reference; its layer-6 codebooks reach ABX 2.99 % within, 3.33 % across speakers.

The recipe is the defaults of the config's fields. What each field means stands beside it, in
`spidr_jax/method/config.py`, `train/config.py` (any run), `train/optim.py`, `model/config.py` and
`method/`.
"""

from ml_collections import ConfigDict

from spidr_jax.method.config import Config
from spidr_jax.train.config import defaults


def get_config() -> ConfigDict:
    return defaults(Config())
