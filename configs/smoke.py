"""A small SpidR on the embedded synthetic speech: the whole way in minutes on two CPU cores.

  pip install -e ".[demo]" && python -m spidr_jax.main --config=configs/smoke.py

Rate, warm-up and batch are chosen so that the codebooks do not collapse; see the README.
"""

import os
import runpy
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()
    config.steps = 400
    config.precision = "float32"
    config.log_every = 20

    width = 192
    config.model.extractor_conv_layer_config = (
        (128, 10, 5),
        *[(128, 3, 2)] * 4,
        *[(128, 2, 2)] * 2,
    )
    config.model.encoder_embed_dim = width
    config.model.encoder_num_layers = 6
    config.model.encoder_num_heads = 4
    config.model.encoder_ff_interm_features = 4 * width
    config.model.codebook_size = 64
    config.model.num_codebooks = 4

    config.masking.group_rows = 4
    config.optimizer.lr = 5e-4
    config.optimizer.warmup_steps = 400

    corpus = FieldReference(os.path.expanduser("~/.cache/spidr_jax/corpus"))
    config.data.embedded_corpus = corpus
    config.data.manifest = corpus + "/train/manifest.csv"
    held_out = corpus + "/dev-unseen"
    config.evaluation = "unseen:" + held_out + "/manifest.csv:" + held_out + "/alignment.txt"
    config.data.num_rungs = 2
    config.data.max_batch_samples = 320_000
    config.data.planned_devices = 1
    config.data.num_threads = 2

    config.checkpoint.every = 100
    return config
